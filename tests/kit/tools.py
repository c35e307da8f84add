"""The tools that check `deploy/`, and what they make of it."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import kubernetes_validate
import yaml

from kit.processes import ROOT

# hadolint is beside Python; checkov has an environment of its own.
_ENVIRONMENT = Path(sys.executable).parent
# The machine's own environment, from before `kit.plugin` takes the proxies out of it.
MACHINE = {**os.environ, "PATH": f"{_ENVIRONMENT}:{os.environ['PATH']}:{ROOT}/tests/.venv-checkov/bin"}

KUBERNETES = ROOT / "deploy/kubernetes"
HELM = ROOT / "deploy/helm"
EXAMPLES = ("deployment", "boto3", "statefulset", "job")
KINDS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
# Native sidecars exist since 1.29.
VERSIONS = [
    version
    for version in sorted(set(map(kubernetes_validate.utils.major_minor, kubernetes_validate.utils.all_versions())))
    if tuple(map(int, version.split("."))) >= (1, 29)
]
# Images, root file systems: made once, and left for the next run.
WORK = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "deploy"

# Components came with kubectl 1.21.
KUBECTL = "kubectl 1.21 or newer"
ROOT_USER = "root"
# The Prometheus operator's schemas, which `npm ci` put into tests/deploy.
SCHEMAS = "node and npm's packages of tests/deploy"
# Helm's engine, which tests/setup put into an environment of its own.
HELM_ENGINE = "helm-python-sdk in tests/.venv-helm"
# Go, and the source code of its AWS SDK under its path: Debian's packages, which tests/setup unpacks.
GO = "Debian's packages of Go and its AWS SDK"
GOPATH = ROOT / "tests/.tools/usr/share/gocode"


def missing(wanted):
    """Those that cannot be had here."""
    return [tool for tool in wanted if not _had(tool)]


@cache
def _had(tool):
    if tool == ROOT_USER:
        return os.geteuid() == 0
    if tool == SCHEMAS:
        return bool(shutil.which("node")) and (ROOT / "tests/deploy/node_modules").is_dir()
    if tool == HELM_ENGINE:
        return (ROOT / "tests/.venv-helm/requirements.txt").is_file()
    if tool == GO:
        return bool(shutil.which("go", path=MACHINE["PATH"])) and GOPATH.is_dir()
    if tool == KUBECTL:
        said = run("kubectl", "version", "--client").stdout if shutil.which("kubectl") else ""
        version = re.search(r"v1\.(\d+)\.", said)
        return bool(version) and int(version[1]) >= 21
    return bool(shutil.which(tool, path=MACHINE["PATH"]))


def run(*command, **options):
    """Runs a tool to its end, whatever comes of it."""
    options = {"capture_output": True, "text": True, "timeout": 600, "env": MACHINE, **options}
    return subprocess.run([str(word) for word in command], **options)


def must(*command, **options):
    """Runs a tool that has to succeed; gives its output."""
    done = run(*command, **options)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def relative(here, there):
    """kustomize takes no absolute paths."""
    return os.path.relpath(there.resolve(), here.resolve())


def kustomized(folder):
    """The objects that `kubectl apply -k` would send: no cluster, no network."""
    return list(yaml.safe_load_all(must("kubectl", "kustomize", folder)))


def helm(verb, chart):
    """Renders a chart ("template": the resources) or lints it ("lint": the findings), by Helm's own engine."""
    engine = [ROOT / "tests/.venv-helm/bin/python", ROOT / "tests/kit/helm_engine.py"]
    answer = json.loads(must(*engine, verb, chart))
    if verb != "template":
        return answer
    return [one for text in answer.values() for one in yaml.safe_load_all(text) if one]


@cache
def rendered(example):
    """The resources of an example."""
    return kustomized(KUBERNETES / "examples" / example)


def template(workload):
    """The pod's template of a workload of any kind."""
    spec = workload["spec"]
    return (spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec)["template"]


def workload(example):
    """The one of them that has pods."""
    found = [one for one in rendered(example) if one["kind"] in KINDS]
    assert len(found) == 1
    return found[0]


def pod(example):
    """The spec of its pods."""
    return template(workload(example))["spec"]


def named(containers, name):
    """The one of this name."""
    return next(one for one in containers if one["name"] == name)


def settings_of(container, resources):
    """A container's environment: its ConfigMaps, one over the other, and over them its variables."""
    maps = {one["metadata"]["name"]: one["data"] for one in resources if one["kind"] == "ConfigMap"}
    found = {}
    for source in container.get("envFrom", []):
        found.update(maps[source["configMapRef"]["name"]])
    found.update({one["name"]: one["value"] for one in container.get("env", [])})
    return found


def settings(example):
    """The relay's environment in an example."""
    return settings_of(named(pod(example)["initContainers"], "connect-relay"), rendered(example))


def mib(text):
    """The MiB of a quantity."""
    number, unit = re.fullmatch(r"(\d+)([MG])iB?", text).groups()
    return int(number) * {"M": 1, "G": 1024}[unit]

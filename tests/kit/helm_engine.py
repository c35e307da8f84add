"""Helm's own engine (version 4), run by the Python of tests/.venv-helm, for `kit.tools.helm`.

    helm_engine.py template CHART   prints the rendered resources: JSON, the text of each template by its path
    helm_engine.py lint CHART       prints what the linter finds beyond information: JSON, a list of texts
    helm_engine.py package CHART    prints the path of the archive, beside the chart
"""

import json
import os
import sys

import helm_python

WARNING = 2


def template(chart):
    with helm_python.Chart.load(chart) as loaded:
        # As an installation does; rendering alone does not look at the schema.
        loaded.validate_schema()
        return loaded.render(name="release", namespace="bots")


def lint(chart):
    report = helm_python.lint(chart, strict=True)
    found = [message["error"] for message in report["messages"] if message["severity"] >= WARNING]
    return found + report["errors"]


def package(chart):
    return helm_python.package(chart, destination=os.path.dirname(chart))


if __name__ == "__main__":
    print(json.dumps({"template": template, "lint": lint, "package": package}[sys.argv[1]](sys.argv[2])))

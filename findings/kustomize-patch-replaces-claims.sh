#!/usr/bin/env bash
# kustomize 5.5.0 (in kubectl 1.32.4)
#
# Behaviour: a strategic merge patch merges initContainers, volumes and volumeMounts by their names, and replaces
#   volumeClaimTemplates: in Kubernetes' schema that list is atomic, although its items have names. A component that adds a
#   claim to a StatefulSet removes the StatefulSet's own claims without a word. A container of the patch whose name the
#   workload does not have is added as it is, without an image.
# Seen (the StatefulSet has the claim and the volume "data" and the container "shop"; the patch has a claim and a volume
# "queue" and a mount in the container "bot"):
#   volumes: queue data
#   claims: queue
#   containers: bot shop
#   image of bot: none
# Wrong guess: a patch adds its claim to those that are there, as it adds its volume; and a patch of a container that does not
#   exist is an error.
#
# Exits with 1 if the behaviour changes, with 2 if kubectl is missing.
set -euo pipefail
command -v kubectl >/dev/null || { echo "kubectl is missing" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

cat >workload.yaml <<'YAML'
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: shop}
spec:
  serviceName: shop
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      containers:
        - name: shop
          image: shop:1
      volumes:
        - name: data
          emptyDir: {}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
YAML
cat >patch.yaml <<'YAML'
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: any}
spec:
  template:
    spec:
      containers:
        - name: bot
          volumeMounts: [{name: queue, mountPath: /queue}]
      volumes:
        - name: queue
          emptyDir: {}
  volumeClaimTemplates:
    - metadata: {name: queue}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
YAML
cat >kustomization.yaml <<'YAML'
resources: [workload.yaml]
patches: [{target: {kind: StatefulSet}, path: patch.yaml}]
YAML

# With --local kubectl reads the rendered file and needs no cluster.
kubectl kustomize . >rendered.yaml
field() { kubectl patch --local --type=merge -p '{}' -f rendered.yaml -o jsonpath="$1"; }
volumes=$(field '{.spec.template.spec.volumes[*].name}')
claims=$(field '{.spec.volumeClaimTemplates[*].metadata.name}')
containers=$(field '{.spec.template.spec.containers[*].name}')
image=$(field '{.spec.template.spec.containers[?(@.name=="bot")].image}')
echo "volumes: $volumes"
echo "claims: $claims"
echo "containers: $containers"
echo "image of bot: ${image:-none}"
[ "$volumes|$claims|$containers|$image" = "queue data|queue|bot shop|" ] || { echo "the behaviour changed" >&2; exit 1; }

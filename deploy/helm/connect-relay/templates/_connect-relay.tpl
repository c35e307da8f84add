{{- /*
The relay beside a bot, as named templates. Each takes the chart's root context, or a dict with `Values` and, for one workload
alone, members that differ from the values:

    {{ include "connect-relay.sidecar" . }}
    {{ include "connect-relay.sidecar" (dict "Values" .Values "terminationGracePeriodSeconds" 600) }}

| Template                          | Place in the workload                                                             |
| connect-relay.labels              | the pod template's metadata.labels                                                |
| connect-relay.grace               | the pod's spec; leave it out, or pass a number, for a period of your own          |
| connect-relay.sidecar             | an item of the pod's initContainers                                               |
| connect-relay.volumes             | two items of the pod's volumes; one with "claim" true: the queue is on a claim, or|
|                                   | on another volume of yours with the name connect-relay-queue                      |
| connect-relay.volumeClaimTemplate | an item of a StatefulSet's volumeClaimTemplates, with "claim" true above          |
| connect-relay.fsGroup             | the pod's securityContext, with a claim: a fresh one belongs to root              |
| connect-relay.volumeMounts        | an item of the volumeMounts of the bot's container                                |
| connect-relay.botEnv              | an item of its env, in place of the mount, with `tcp: true`                       |
*/ -}}

{{- define "connect-relay.labels" -}}
connect-relay/scrape: "true"
{{- end }}

{{- /* An integer: Helm writes a large number of the values as 1e+06. */}}
{{- define "connect-relay.graceSeconds" -}}
{{- .terminationGracePeriodSeconds | default (index .Values "connect-relay").terminationGracePeriodSeconds | int64 -}}
{{- end }}

{{- define "connect-relay.grace" -}}
terminationGracePeriodSeconds: {{ include "connect-relay.graceSeconds" . }}
{{- end }}

{{- define "connect-relay.sidecar" -}}
{{- $relay := index .Values "connect-relay" -}}
{{- $grace := sub (include "connect-relay.graceSeconds" . | int64) ($relay.botEndsIn | int64) -}}
{{- if lt $grace 1 -}}
{{- fail "connect-relay: terminationGracePeriodSeconds must be longer than botEndsIn, or the relay has no time to deliver" -}}
{{- end -}}
{{- $env := dict
  "AWS_REGION" (required "connect-relay.region is required: the AWS region of your Connect instance" $relay.region)
  "CONNECT_RELAY__SENDER__CONNECT_INSTANCE" $relay.connectInstance
  "CONNECT_RELAY__INGRESS__SOCKET_MODE" "0666"
  "CONNECT_RELAY__ADMIN__LISTEN" "[::]:9581"
  "CONNECT_RELAY__SHUTDOWN__GRACE" (printf "%ds" $grace)
  "CONNECT_RELAY__QUEUE__BYTES_MAX" (printf "%dMiB" (div ($relay.queueMiB | int64) 2))
-}}
{{- if $relay.tcp -}}
{{- $_ := set $env "CONNECT_RELAY__INGRESS__TCP" "127.0.0.1:8480" -}}
{{- end -}}
{{- if $relay.keysSecret -}}
{{- $_ := set $env "CONNECT_RELAY__QUEUE__KEY_FILE" "/etc/connect-relay/keys/keys" -}}
{{- end -}}
{{- $fleet := $relay.fleet -}}
{{- if and $fleet.serversSecret $fleet.servers -}}
{{- fail "connect-relay: set fleet.serversSecret or fleet.servers, not both" -}}
{{- end -}}
{{- $shares := or $fleet.serversSecret $fleet.servers -}}
{{- if $shares -}}
{{- $_ := required "connect-relay.connectInstance is required with a fleet: relays that name the same instance share its quota" $relay.connectInstance -}}
{{- end -}}
{{- with $fleet.servers -}}
{{- $_ := set $env "CONNECT_RELAY__FLEET__SERVERS" (join "," .) -}}
{{- end -}}
{{- if $fleet.replicate -}}
{{- if not (and $shares $relay.keysSecret) -}}
{{- fail "connect-relay: fleet.replicate needs fleet.serversSecret or fleet.servers, and keysSecret, whose keys seal the copy" -}}
{{- end -}}
{{- $_ := set $env "CONNECT_RELAY__FLEET__REPLICATE" "true" -}}
{{- $_ := set $env "CONNECT_RELAY__FLEET__IDENTITY" "$(POD_NAMESPACE).$(POD_NAME)" -}}
{{- end -}}
{{- $env = mergeOverwrite $env $relay.env -}}
- name: connect-relay
  {{- if $relay.image.digest }}
  image: {{ printf "%s@%s" $relay.image.repository $relay.image.digest | quote }}
  {{- else }}
  image: {{ printf "%s:%s" $relay.image.repository $relay.image.tag | quote }}
  {{- end }}
  {{- with $relay.image.pullPolicy }}
  imagePullPolicy: {{ . }}
  {{- end }}
  restartPolicy: Always
  args: [run]
  env:
    {{- if $fleet.replicate }}
    - name: POD_NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
    {{- end }}
    {{- with $fleet.serversSecret }}
    - name: CONNECT_RELAY__FLEET__SERVERS
      valueFrom:
        secretKeyRef:
          name: {{ . | quote }}
          key: servers
    {{- end }}
    {{- range $name, $value := $env }}
    - name: {{ $name }}
      value: {{ $value | quote }}
    {{- end }}
  ports:
    - name: relay-admin
      containerPort: 9581
  startupProbe:
    httpGet: {path: /readyz, port: relay-admin}
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 300
  livenessProbe:
    httpGet: {path: /livez, port: relay-admin}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    {{- $disk := printf "%dMi" (add ($relay.queueMiB | int64) 44) }}
    {{- mergeOverwrite (dict "requests" (dict "ephemeral-storage" $disk)) ($relay.resources | default dict) | toYaml | nindent 4 }}
  securityContext:
    runAsUser: 29581
    runAsGroup: 29581
    runAsNonRoot: true
    readOnlyRootFilesystem: true
    allowPrivilegeEscalation: false
    capabilities:
      drop: [ALL]
    seccompProfile:
      type: RuntimeDefault
  volumeMounts:
    - name: connect-relay-socket
      mountPath: /run/connect-relay
    - name: connect-relay-queue
      mountPath: /var/lib/connect-relay
    {{- if $relay.keysSecret }}
    - name: connect-relay-keys
      mountPath: /etc/connect-relay/keys
      readOnly: true
    {{- end }}
    {{- if $fleet.serversSecret }}
    - name: connect-relay-fleet
      mountPath: /etc/connect-relay/fleet
      readOnly: true
    {{- end }}
{{- end }}

{{- define "connect-relay.volumes" -}}
- name: connect-relay-socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- if not .claim }}
- name: connect-relay-queue
  emptyDir:
    sizeLimit: {{ (index .Values "connect-relay").queueMiB | int64 }}Mi
{{- end }}
{{- with (index .Values "connect-relay").keysSecret }}
- name: connect-relay-keys
  secret:
    secretName: {{ . | quote }}
{{- end }}
{{- with (index .Values "connect-relay").fleet.serversSecret }}
- name: connect-relay-fleet
  secret:
    secretName: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "connect-relay.volumeClaimTemplate" -}}
- metadata:
    name: connect-relay-queue
  spec:
    accessModes: [ReadWriteOnce]
    resources:
      requests:
        storage: {{ max 1024 ((index .Values "connect-relay").queueMiB | int64) }}Mi
{{- end }}

{{- define "connect-relay.fsGroup" -}}
fsGroup: 29581
fsGroupChangePolicy: OnRootMismatch
{{- end }}

{{- define "connect-relay.volumeMounts" -}}
- name: connect-relay-socket
  mountPath: /run/connect-relay
  readOnly: true
{{- end }}

{{- define "connect-relay.botEnv" -}}
{{- $relay := index .Values "connect-relay" -}}
{{- if not $relay.tcp -}}
{{- fail "connect-relay: connect-relay.botEnv needs tcp: true, or the relay does not listen at the bot's address" -}}
{{- end -}}
- name: AWS_ENDPOINT_URL_CONNECTPARTICIPANT
  value: http://{{ index $relay.env "CONNECT_RELAY__INGRESS__TCP" | default "127.0.0.1:8480" }}
{{- end }}

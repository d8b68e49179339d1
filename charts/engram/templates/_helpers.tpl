{{/* The name of the application: a label's value, part of every selector. */}}
{{- define "engram.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{/*
The beginning of every object's name, at most 46 characters, so that the longest ending (-operator-metrics) stays within
the 63 of a Service. What is cut gets a digest: two long names never become one. A Service cannot begin with a digit.
*/}}
{{- define "engram.fullname" -}}
{{- $name := include "engram.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride | replace "." "-" -}}
{{- $full = ternary (printf "engram-%s" $full) $full (regexMatch "^[0-9]" $full) -}}
{{- if gt (len $full) 46 -}}
{{- printf "%s-%s" ($full | trunc 37 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{/* What never changes in a release: the labels that select a component's pods. Call with (dict "root" $ "component" "operator"). */}}
{{- define "engram.selector" -}}
app.kubernetes.io/name: {{ include "engram.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* As engram.selector, in one line: name=value, separated by commas. No label holds either. */}}
{{- define "engram.selectorAsText" -}}
{{- $pairs := list -}}
{{- range $name, $value := include "engram.selector" . | fromYaml -}}
{{- $pairs = append $pairs (printf "%s=%s" $name $value) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* The names of imagePullSecrets, separated by commas. */}}
{{- define "engram.pullSecrets" -}}
{{- $names := list -}}
{{- range .Values.imagePullSecrets -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}

{{/* Labels of every object. Ours win over those of the values, which the schema keeps apart. */}}
{{- define "engram.labels" -}}
{{- $ours := include "engram.selector" . | fromYaml -}}
{{- $_ := set $ours "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $ours "app.kubernetes.io/part-of" "engram" -}}
{{- $_ := set $ours "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $ours "helm.sh/chart" (printf "%s-%s" .root.Chart.Name (.root.Chart.Version | replace "+" "_")) -}}
{{- merge $ours (default dict .more) .root.Values.labels | toYaml -}}
{{- end -}}

{{/* The metadata of an object after its name. Call as engram.labels; `more` is further labels, `annotations` further annotations. */}}
{{- define "engram.metadata" -}}
labels:
  {{- include "engram.labels" . | nindent 2 }}
{{- with merge (dict) (default dict .annotations) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* As engram.metadata, for the template of pods: without the chart's version, with which they have no reason to restart. */}}
{{- define "engram.podMetadata" -}}
{{- $metadata := include "engram.metadata" . | fromYaml -}}
{{- set $metadata "labels" (omit $metadata.labels "helm.sh/chart") | toYaml -}}
{{- end -}}

{{/* An image by its digest, else by its tag. Call with (dict "root" $ "image" .Values.images.operator). */}}
{{- define "engram.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Names that the processes get by their environment and that the rights name one by one. */}}
{{- define "engram.secret" -}}
{{ include "engram.fullname" . }}-webhook-tls
{{- end -}}
{{- define "engram.lease" -}}
{{ include "engram.fullname" . }}-operator
{{- end -}}
{{- define "engram.injector" -}}
{{ include "engram.fullname" . }}-injector
{{- end -}}
{{- define "engram.webhook" -}}
{{ include "engram.fullname" . }}-injector
{{- end -}}

{{/* Where the pods of a component run: its own values. Call with (dict "root" $ "component" "operator" "values" .Values.operator). */}}
{{- define "engram.scheduling" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ quote . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $own := dict "matchLabels" (include "engram.selector" . | fromYaml) }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ set (deepCopy .) "labelSelector" (default $own .labelSelector) | toYaml | nindent 4 | trim }}
  {{- end }}
{{- end }}
terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
{{- end -}}

{{/* Who the pod runs as: what Pod Security `restricted` asks of a pod. 65532 is the images' user. */}}
{{- define "engram.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* What Pod Security `restricted` asks of a container, and a file system that nobody changes: the processes write nothing. */}}
{{- define "engram.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The environment that both processes read. */}}
{{- define "engram.environment" -}}
- name: ENGRAM_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: ENGRAM_POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: ENGRAM_ADMIN_PORT
  value: "8080"
- name: ENGRAM_TLS_SECRET
  value: {{ include "engram.secret" . }}
{{- end -}}

{{/* The sidecar: the injector makes it, and the operator judges by it which pods run an older one. */}}
{{- define "engram.sidecarEnvironment" -}}
- name: ENGRAM_SIDECAR_IMAGE
  value: {{ include "engram.image" (dict "root" . "image" .Values.images.sidecar) | quote }}
- name: ENGRAM_SIDECAR_PULL_POLICY
  value: {{ .Values.imagePullPolicy }}
- name: ENGRAM_SIDECAR_RESOURCES
  value: {{ toJson .Values.injector.sidecar.resources | squote }}
{{- with .Values.injector.sidecar.otlpEndpoint }}
- name: ENGRAM_SIDECAR_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Probes of both processes, at the port that also gives the metrics. Two minutes to start: a slow node is not a dead process. */}}
{{- define "engram.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/* "yes" where an object of the Prometheus operator is to be made. Call with (dict "root" $ "name" "podMonitor"). */}}
{{- define "engram.isMonitored" -}}
{{- $enabled := (get .root.Values.monitoring .name).enabled -}}
{{- $has := .root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1" -}}
{{- if and (kindIs "bool" $enabled) $enabled (not $has) -}}
{{- fail (printf "monitoring.%s.enabled is true, but the API server has no monitoring.coreos.com/v1: install the Prometheus operator first, or set it to auto or false (helm template: --api-versions monitoring.coreos.com/v1)" .name) -}}
{{- end -}}
{{- if or (and (kindIs "bool" $enabled) $enabled) (and (eq (toString $enabled) "auto") $has) -}}
yes
{{- end -}}
{{- end -}}

{{/* Labels of an object that Prometheus selects: all labels, and those of monitoring.labels. */}}
{{- define "engram.monitorMetadata" -}}
{{- include "engram.metadata" (merge (dict "more" .root.Values.monitoring.labels) .) -}}
{{- end -}}

{{/* Who deletes only what somebody else was allowed to delete: see protection.yaml. */}}
{{- define "engram.lettingControllersThrough" -}}
matchConditions:
  - name: asked-for-by-somebody-else
    expression: >-
      !(request.userInfo.username in ["system:serviceaccount:kube-system:namespace-controller",
      "system:serviceaccount:kube-system:generic-garbage-collector", "system:kube-controller-manager"])
{{- end -}}

{{/* What both webhooks have in common. Call with (dict "root" $ "path" "/mutate"). */}}
{{- define "engram.webhookRules" -}}
admissionReviewVersions: [v1]
clientConfig:
  service:
    name: {{ include "engram.fullname" .root }}-webhook
    namespace: {{ .root.Release.Namespace | quote }}
    path: {{ .path }}
    port: 443
rules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
    scope: Namespaced
failurePolicy: {{ .root.Values.injector.failurePolicy }}
timeoutSeconds: {{ .root.Values.injector.timeoutSeconds }}
matchPolicy: Equivalent
sideEffects: None
# A webhook after ours may add a container that needs the same; ours answers the same thing twice.
reinvocationPolicy: IfNeeded
{{- end -}}

{{/* The namespaces of both webhooks; further expressions may follow. */}}
{{- define "engram.webhookNamespaces" -}}
{{- $selector := default dict .Values.injector.namespaceSelector -}}
{{- with $selector.matchLabels -}}
matchLabels:
  {{- toYaml . | nindent 2 }}
{{ end -}}
matchExpressions:
  # What keeps the cluster alive, and the injector itself, must not wait for the injector.
  - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, kube-node-lease, {{ .Release.Namespace | quote }}]}
  {{- with $selector.matchExpressions }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/*
CEL: whether the text at a path such as "v.secret.secretName" names a tenant's Secret; false, and never an error, where
anything on the way is absent. engram_contract/names.py makes the name (tenant_objects).
*/}}
{{- define "engram.namesTenantSecret" -}}
{{- $way := "" -}}
{{- range $index, $part := splitList "." . -}}
{{- $way = ternary $part (printf "%s.%s" $way $part) (eq $index 0) -}}
{{- if $index -}}
has({{ $way }}) && {{/* */}}
{{- end -}}
{{- end -}}
{{ . }}.startsWith('engram-tenant-')
{{- end -}}

{{/* CEL: whether a volume v names a tenant's Secret, in whatever of the ways that Kubernetes has. */}}
{{- define "engram.volumeNamesTenantSecret" -}}
({{ include "engram.namesTenantSecret" "v.secret.secretName" }})
|| (has(v.projected) && has(v.projected.sources) && v.projected.sources.exists(s, {{ include "engram.namesTenantSecret" "s.secret.name" }}))
|| ({{ include "engram.namesTenantSecret" "v.azureFile.secretName" }})
|| ({{ include "engram.namesTenantSecret" "v.csi.nodePublishSecretRef.name" }})
|| (has(v.csi) && has(v.csi.volumeAttributes) && v.csi.volumeAttributes.exists(k, v.csi.volumeAttributes[k].startsWith('engram-tenant-')))
|| (has(v.flexVolume) && has(v.flexVolume.options) && v.flexVolume.options.exists(k, v.flexVolume.options[k].startsWith('engram-tenant-')))
{{- range list "cephfs" "cinder" "flexVolume" "iscsi" "rbd" "scaleIO" "storageos" }}
|| ({{ include "engram.namesTenantSecret" (printf "v.%s.secretRef.name" .) }})
{{- end -}}
{{- end -}}

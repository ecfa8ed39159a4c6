{{/* Name of everything that belongs to the operator. */}}
{{- define "mcp-hub.name" -}}
{{- if contains "mcp-hub" .Release.Name -}}
{{- printf "%s-operator" (.Release.Name | trunc 54 | trimSuffix "-") -}}
{{- else -}}
{{- printf "%s-mcp-hub-operator" (.Release.Name | trunc 46 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the operator's pods; they cannot change. */}}
{{- define "mcp-hub.selector" -}}
app.kubernetes.io/name: mcp-hub
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "mcp-hub.labels" -}}
{{ include "mcp-hub.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Name of everything that belongs to the relay. */}}
{{- define "mcp-hub.relay" -}}
{{- include "mcp-hub.name" . | trimSuffix "-operator" -}}-relay
{{- end -}}

{{/* Labels that select the relay's pods; they cannot change. */}}
{{- define "mcp-hub.relaySelector" -}}
app.kubernetes.io/name: mcp-hub
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: relay
{{- end -}}

{{- define "mcp-hub.relayLabels" -}}
{{ include "mcp-hub.labels" . | replace "app.kubernetes.io/component: operator" "app.kubernetes.io/component: relay" }}
{{- end -}}

{{- define "mcp-hub.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "mcp-hub.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Reference of one of our images: (list . "operator"). */}}
{{- define "mcp-hub.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $images := $root.Values.images -}}
{{- get $images $image | default (printf "%s/%s:%s" $images.prefix $image ($images.tag | default $root.Chart.AppVersion)) -}}
{{- end -}}

{{/* What a container needs under the restricted Pod Security level, besides the pod's own part. */}}
{{- define "mcp-hub.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The operator's rights where servers and hubs are: just what it uses, which a test holds against an audit log. */}}
{{- define "mcp-hub.rules" -}}
- apiGroups: [mcphub.io]
  resources: [mcpservers, mcphubs]
  verbs: [list, watch]
- apiGroups: [mcphub.io]
  resources: [mcpservers/status, mcphubs/status]
  verbs: [patch]
# Users' Secrets are read by name, for servers and hubs that refer to them. The others are its own: a hub's configuration and
# token.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, patch, delete]
# Whether a cluster knows these two kinds or not; it looks now and then.
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

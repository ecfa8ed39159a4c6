//! Whatever is done to a child is undone, and Ready tells the truth meanwhile.

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt};
use mcp_hub_crds::MCPServer;
use serde_json::{Value, json};

use crate::audit::tally;
use crate::children::{Children, assert_same, difference};
use crate::place::{NAMESPACE, Place, all_ready, eventually, ready, server};

/// A child: how it is asked for, its name, and what people may do to it.
struct Child {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    name: &'static str,
    edits: Vec<Value>,
}

fn children() -> Vec<Child> {
    let child = |group, kind, plural, name, edits| Child { group, kind, plural, name, edits };
    let pod = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
    let deployment = || {
        vec![
            json!({"spec": {"replicas": 5}}),
            json!({"spec": {"paused": true}}),
            json!({"spec": {"minReadySeconds": 7}}),
            json!({"spec": {"revisionHistoryLimit": 9}}),
            json!({"spec": {"progressDeadlineSeconds": 7}}),
            json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}),
            pod(json!({"hostNetwork": true})),
            pod(json!({"serviceAccountName": "default", "automountServiceAccountToken": true})),
            pod(json!({"containers": [{"name": "other", "image": "example.org/evil:1"}]})),
            pod(json!({"securityContext": null})),
            pod(json!({"nodeSelector": {"x": "y"}, "priority": null})),
        ]
    };
    let service = || {
        vec![
            json!({"spec": {"selector": null}}),
            json!({"spec": {"selector": {"more": "x"}}}),
            json!({"spec": {"externalIPs": ["192.0.2.1"]}}),
            json!({"spec": {"publishNotReadyAddresses": true}}),
            json!({"spec": {"ports": [{"name": "other", "port": 99}]}}),
        ]
    };
    let policy = || {
        vec![
            json!({"spec": {"ingress": [{}]}}),
            json!({"spec": {"ingress": null}}),
            json!({"spec": {"egress": [{}], "policyTypes": ["Egress", "Ingress"]}}),
            json!({"spec": {"podSelector": {"matchLabels": {"more": "x"}}}}),
        ]
    };
    let budget =
        vec![json!({"spec": {"maxUnavailable": 5}}), json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}})];
    let config = vec![
        json!({"data": {"more": "eA=="}}),
        json!({"data": {"sealing-key": "eA=="}}),
        json!({"data": {"config.json.gz": null}}),
    ];
    let token = vec![json!({"data": {"token": "eA=="}}), json!({"data": {"url": null}})];
    vec![
        child("apps", "Deployment", "deployments", "mcp-a", deployment()),
        child("", "Service", "services", "mcp-a", service()),
        child("networking.k8s.io", "NetworkPolicy", "networkpolicies", "mcp-a", policy()),
        child("apps", "Deployment", "deployments", "mcp-hub-main", deployment()),
        child("", "Service", "services", "mcp-hub-main", service()),
        child("networking.k8s.io", "NetworkPolicy", "networkpolicies", "mcp-hub-main", policy()),
        child("policy", "PodDisruptionBudget", "poddisruptionbudgets", "mcp-hub-main", budget),
        child("", "Secret", "secrets", "mcp-hub-main-config", config),
        child("", "Secret", "secrets", "mcp-hub-main-token", token),
    ]
}

impl Child {
    fn api(&self, place: &Place) -> Api<DynamicObject> {
        let api_version = if self.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", self.group) };
        let resource = ApiResource {
            group: self.group.to_owned(),
            version: "v1".to_owned(),
            api_version,
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        };
        Api::namespaced_with(place.client.0.clone(), NAMESPACE, &resource)
    }

    /// What can be done to any object.
    fn marks(&self) -> Vec<Value> {
        let metadata = |metadata: Value| json!({"metadata": metadata});
        // The operator looks at its Secrets every ten seconds and watches none, so that less is done to them.
        if self.kind == "Secret" {
            let (labels, annotations) =
                (json!({"app.kubernetes.io/managed-by": "me"}), json!({"mcphub.io/digest": "0"}));
            return vec![
                metadata(json!({"labels": labels, "annotations": annotations})),
                // With its labels gone too it would be anybody's, and left alone.
                metadata(json!({"ownerReferences": null})),
            ];
        }
        vec![
            metadata(json!({"labels": {"mcphub.io/owner-uid": "other"}})),
            metadata(json!({"labels": {"app.kubernetes.io/managed-by": "me"}})),
            metadata(json!({"labels": null})),
            metadata(json!({"annotations": {"mcphub.io/digest": "0"}})),
            metadata(json!({"ownerReferences": null})),
        ]
    }

    /// Waits until the object is what it was before something was done to it.
    async fn mended(&self, place: &Place, what: &str, before: &Children) {
        let key = format!("{} {}", self.kind, self.name);
        let own = |children: &Children| -> Children {
            children.get(&key).map(|object| (key.clone(), object.clone())).into_iter().collect()
        };
        let before = own(before);
        eventually(&format!("{what} at {key} to be undone"), async || {
            match difference(&before, &own(&place.children().await))[..] {
                [] => Ok(()),
                ref found => Err(found.join("\n")),
            }
        })
        .await;
    }

    /// Deletes it, then edits it in each way, and sees it mended each time; how much was done.
    async fn is_put_right(&self, place: &Place, before: &Children) -> usize {
        let api = self.api(place);
        let old = api.get(self.name).await.unwrap().uid();
        api.delete(self.name, &DeleteParams::background()).await.unwrap();
        eventually(&format!("another {} {}", self.kind, self.name), async || {
            match api.get_opt(self.name).await.unwrap() {
                Some(new) if new.uid() != old => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        self.mended(place, "its deletion", before).await;
        let edits: Vec<Value> = self.edits.iter().cloned().chain(self.marks()).collect();
        for edit in &edits {
            let params = PatchParams { field_manager: Some("somebody".to_owned()), ..PatchParams::default() };
            let patched = api.patch(self.name, &params, &Patch::Merge(edit)).await;
            patched.unwrap_or_else(|error| panic!("{error} {edit}"));
            self.mended(place, &edit.to_string(), before).await;
        }
        1 + edits.len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_to_a_child_is_undone() {
    let place = Place::new().await;
    let mut operator = place.operator("op");
    operator.until_it_leads().await;
    place.hub("main", &json!({"gateway": {"replicas": 2}})).await;
    place.server("a", &server(json!({"permissions": {"network": {"egress": ["10.0.0.1:1"]}}}))).await;
    place.settled(all_ready).await;
    let before = place.children().await;
    let audit = place.audit();
    let all = children();
    let done: usize = join_all(all.iter().map(|child| child.is_put_right(&place, &before))).await.into_iter().sum();
    place.settled(all_ready).await;
    assert_same("all of it is undone", &before, &place.children().await);
    let writes = audit.writes();
    println!("{done} deeds undone by {} writes: {}", writes.len(), tally(&writes));
    assert!(writes.len() <= done * 10, "{}", tally(&writes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_tells_the_truth_while_a_server_is_away() {
    let place = Place::new().await;
    let mut operator = place.operator("op");
    operator.until_it_leads().await;
    place.server("a", &server(json!({}))).await;
    place.settled(all_ready).await;
    let deployment = &children()[0];
    let api = deployment.api(&place);
    for deed in ["delete the Deployment", "scale it to nothing", "delete the pod"] {
        // The pods that come shake no hands yet.
        place.bridges.say_ready(false);
        let before: Vec<Option<String>> = place.list::<Pod>().await.iter().map(ResourceExt::uid).collect();
        match deed {
            "delete the Deployment" => drop(api.delete(deployment.name, &DeleteParams::background()).await.unwrap()),
            "scale it to nothing" => {
                let nothing = Patch::Merge(json!({"spec": {"replicas": 0}}));
                api.patch(deployment.name, &PatchParams::default(), &nothing).await.unwrap();
            }
            _ => {
                let name = place.list::<Pod>().await[0].name_any();
                place.api::<Pod>().delete(&name, &DeleteParams::default()).await.unwrap();
            }
        }
        let says = async || {
            let server = place.api::<MCPServer>().get("a").await.unwrap();
            ready(&server).map(|(status, reason, _)| format!("{status} {reason}")).unwrap_or_default()
        };
        eventually(&format!("Ready to be false: {deed}"), async || match says().await {
            text if text.starts_with("False") => Ok(()),
            other => Err(other),
        })
        .await;
        eventually(&format!("another pod: {deed}"), async || match &place.list::<Pod>().await[..] {
            [pod] if !before.contains(&pod.uid()) => Ok(()),
            other => Err(format!("{} pods", other.len())),
        })
        .await;
        assert!(says().await.starts_with("False"), "{deed}: {}", says().await);
        place.bridges.say_ready(true);
        place.settled(all_ready).await;
    }
}

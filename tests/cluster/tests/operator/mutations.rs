//! Every field of both resources is changed and taken back. What the operator makes of it is what a fresh install of the
//! same spec makes. That the tables of fields are complete is a test of `reconcile`, which compares them with the schemas.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use futures::{StreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::api::{DeleteParams, PostParams};
use mcp_hub_crds::{MCPHub, MCPServer};
use mcp_hub_reconcile::contract::fields::{Base, Field, of, of_hub};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::children::{Children, assert_same};
use crate::garbage::names;
use crate::place::{Place, REGISTRY, eventually, server};

/// Requests at a time.
const AT_ONCE: usize = 8;

/// What the table's specs refer to.
const INGREDIENTS: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Secret, metadata: {name: a, namespace: team}, stringData: {k: one, l: two}}
- {apiVersion: v1, kind: Secret, metadata: {name: b, namespace: team}, stringData: {k: three}}
- apiVersion: v1
  kind: Secret
  metadata: {name: ghcr, namespace: team}
  type: kubernetes.io/dockerconfigjson
  stringData: {.dockerconfigjson: '{"auths": {}}'}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: map, namespace: team}, data: {k: v}}
- apiVersion: v1
  kind: PersistentVolume
  metadata: {name: disk}
  spec:
    capacity: {storage: 1Gi}
    accessModes: [ReadWriteOnce]
    hostPath: {path: /nowhere}
    claimRef: {namespace: team, name: claim}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata: {name: claim, namespace: team}
  spec: {storageClassName: "", volumeName: disk, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#;

pub(crate) async fn ingredients(place: &Place) {
    let cluster = place.cluster.clone();
    tokio::task::spawn_blocking(move || cluster.apply(INGREDIENTS).unwrap()).await.unwrap();
}

pub(crate) fn servers() -> Vec<Field> {
    let base = Base {
        source: server(json!({}))["source"].clone(),
        volume: json!({"emptyDir": {}}),
        filesystem: "unrestricted",
    };
    // Images are those of the registry that is at hand, and what is to be reached has an address.
    let here = |mut spec: Value| {
        if let Some(image) = spec.pointer_mut("/source/image/ref") {
            *image = json!(format!("{REGISTRY}/{}", image.as_str().unwrap()));
        }
        if let Some(egress) = spec.pointer_mut("/permissions/network/egress") {
            *egress = json!(["10.0.0.1:1"]);
        }
        spec
    };
    of(&base).into_iter().map(|(field, without, with)| (field, here(without), here(with))).collect()
}

/// The objects under test: one for each field.
struct Campaign<'a, K> {
    place: &'a Place,
    kind: &'static str,
    fields: Vec<(String, Field)>,
    _kind: std::marker::PhantomData<K>,
}

impl<K> Campaign<'_, K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
{
    /// Gives an object exactly this spec, as `kubectl replace` does: server-side apply makes null of a section that is left
    /// empty, which no schema takes.
    async fn replace(&self, name: &str, spec: &Value) -> Result<(), kube::Error> {
        let api = self.place.api::<K>();
        loop {
            let Some(found) = api.get_opt(name).await? else {
                return self.place.put::<K>(self.kind, name, spec).await.map(drop);
            };
            let mut object = serde_json::to_value(&found).unwrap();
            object["spec"] = spec.clone();
            let object: K = serde_json::from_value(object).unwrap();
            match api.replace(name, &PostParams::default(), &object).await {
                // The operator wrote a status in between.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    /// Gives each object but those left out its spec.
    async fn want(&self, with: bool, left_out: &BTreeSet<String>) {
        let wanted = self.fields.iter().filter(|(name, _)| !left_out.contains(name));
        stream::iter(wanted)
            .for_each_concurrent(AT_ONCE, async |(name, (field, without, changed))| {
                let spec = if with { changed } else { without };
                let put = self.replace(name, spec).await;
                put.unwrap_or_else(|error| panic!("{field}: {error}\n{spec:#}"));
            })
            .await;
        self.place.settled(|_, _| Ok(())).await;
    }

    /// Objects whose spec is refused now, each with what says so.
    async fn refused(&self) -> BTreeMap<String, String> {
        let kind = self.kind.trim_start_matches("MCP").to_lowercase();
        let verdicts = self.place.verdicts().await;
        let refusals = self.fields.iter().filter_map(|(name, _)| {
            let lines = &verdicts[&format!("{kind} {name}")];
            let refusal =
                |line: &&String| line.contains("=False NotImplemented") || line.contains("=False Unsupported");
            Some((name.clone(), lines.iter().find(refusal)?.clone()))
        });
        refusals.collect()
    }

    /// Hubs whose gateways run on without the certificate that a new gateway would wait for.
    async fn held(&self) -> Vec<String> {
        let verdicts = self.place.verdicts().await;
        let waits = |name: &String| {
            let lines = verdicts.get(&format!("hub {name}"));
            lines.is_some_and(|lines| lines.iter().any(|line| line.contains("Resolved=False")))
        };
        self.fields.iter().map(|(name, _)| name).filter(|name| waits(name)).cloned().collect()
    }

    async fn run(&self) {
        let place = self.place;
        let mut operator = place.operator("op");
        operator.until_it_leads().await;
        let none = BTreeSet::new();
        self.want(false, &none).await;
        let (without, verdicts) = (place.children().await, place.verdicts().await);

        // Changed. A spec that is refused is told of by its field, and leaves what runs alone.
        let before = self.refused().await;
        self.want(true, &none).await;
        let with = place.children().await;
        let (refused, held) = (self.refused().await, self.held().await);
        for (name, (field, ..)) in &self.fields {
            if let Some(refusal) = refused.get(name) {
                assert!(names(refusal, field), "{field} is refused as {refusal}");
                if !before.contains_key(name) {
                    assert_same(&format!("{field} is refused"), &of_one(&without, name), &of_one(&with, name));
                }
            }
        }
        let of_refused: Vec<&str> =
            self.fields.iter().filter(|(name, _)| refused.contains_key(name)).map(|(_, (field, ..))| *field).collect();
        println!("{} fields, of which these are refused: {of_refused:?}", self.fields.len());

        // Taken back.
        self.want(false, &none).await;
        assert_same("what was taken back is as if it had never been", &without, &place.children().await);
        assert_eq!(place.verdicts().await, verdicts);

        // Changed again, and installed afresh. What is refused would not be installed at all.
        // And status remembers of a stopped server how it was when it ran.
        let stopped =
            self.fields.iter().filter(|(_, (field, ..))| *field == "spec.paused").map(|(name, _)| name.clone());
        let left_out: BTreeSet<String> = refused.into_keys().chain(stopped).chain(held).collect();
        for name in &left_out {
            place.api::<K>().delete(name, &DeleteParams::default()).await.unwrap();
        }
        eventually("what belongs to those to be gone", async || {
            let children = place.children().await;
            let left: Vec<_> = left_out.iter().filter(|name| !of_one(&children, name).is_empty()).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
        self.want(true, &left_out).await;
        let changed = place.children().await;
        operator.kill();
        place.wipe().await;
        let mut operator = place.operator("op");
        operator.until_it_leads().await;
        place.settled(|_, _| Ok(())).await;
        assert_same("what was changed is as if installed so", &changed, &place.children().await);
    }
}

/// The children of one object.
fn of_one(children: &Children, name: &str) -> Children {
    let own = |key: &&String| key.split([' ', '-']).any(|part| part == name);
    children.iter().filter(|(key, _)| own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_a_server_can_be_changed_and_taken_back() {
    let place = Place::new().await;
    ingredients(&place).await;
    place.hub("main", &json!({"gateway": {"replicas": 1}})).await;
    let fields = servers().into_iter().enumerate().map(|(number, field)| (format!("f{number:02}"), field)).collect();
    Campaign::<MCPServer> { place: &place, kind: "MCPServer", fields, _kind: std::marker::PhantomData }.run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_a_hub_can_be_changed_and_taken_back() {
    let place = Place::new().await;
    for name in ["one", "two"] {
        place.server(name, &server(json!({}))).await;
    }
    let fields = of_hub().into_iter().enumerate().map(|(number, field)| (format!("f{number:02}"), field)).collect();
    Campaign::<MCPHub> { place: &place, kind: "MCPHub", fields, _kind: std::marker::PhantomData }.run().await;
}

/// What the documentation says of it. If one day the API server takes an emptied section, there is something to be taken out
/// there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_section_is_taken_back_by_leaving_it_out() {
    let place = Place::new().await;
    let disk = |empty_dir: Value| json!([{"name": "data", "mountPath": "/data", "emptyDir": empty_dir}]);
    let limited = disk(json!({"sizeLimit": "1Gi"}));
    let full = server(json!({"lifecycle": {"mode": "onDemand"}, "volumes": limited}));
    for (section, emptied) in [("lifecycle", json!({})), ("volumes", disk(json!({})))] {
        place.server("one", &full).await;
        let mut spec = full.clone();
        spec[section] = emptied.clone();
        let refused = place.put::<MCPServer>("MCPServer", "one", &spec).await.unwrap_err().to_string();
        assert!(refused.contains(r#"Invalid value: "null""#), "{section}: {refused}");
        spec.as_object_mut().unwrap().remove(section);
        place.server("one", &spec).await;
        spec[section] = emptied;
        place.server("one", &spec).await;
    }
    // A hub without options is the usual one.
    place.hub("main", &json!({"gateway": {"replicas": 1}})).await;
    let hub = place.hub("main", &json!({})).await;
    assert_eq!(hub.spec, mcp_hub_crds::MCPHubSpec::default());
}

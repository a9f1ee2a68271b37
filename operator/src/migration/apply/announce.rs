//! Events, for people: on the Migration, with its pod as the related object, and some on the pod as well. One that is lost does no
//! harm.

use super::{ApplyError, Outcome};
use crate::migration::Context;
use crate::transition::Announcement;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use tideover_crds::Migration;
use tracing::warn;

pub(super) async fn announce(
    context: &Context,
    migration: &Migration,
    announcement: &Announcement,
) -> Result<Outcome, ApplyError> {
    let pod = |name: &str, uid: Option<String>| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: migration.namespace(),
        name: Some(name.to_owned()),
        uid,
        ..Default::default()
    };
    let on_migration = migration.object_ref(&());
    let on_pod = announcement.pod.as_ref().map(|told| pod(&told.name, Some(told.uid.clone())));
    publish(context, announcement, &on_migration, pod(&migration.spec.pod.name, migration.spec.pod.uid.clone())).await;
    if let Some(on_pod) = on_pod {
        publish(context, announcement, &on_pod, on_migration).await;
    }
    Ok(Outcome::Done)
}

async fn publish(context: &Context, announcement: &Announcement, on: &ObjectReference, related: ObjectReference) {
    let event = Event {
        type_: if announcement.warning { EventType::Warning } else { EventType::Normal },
        reason: announcement.reason.clone(),
        note: Some(announcement.note.clone()),
        action: "Migrate".to_owned(),
        secondary: Some(related),
    };
    if let Err(error) = context.recorder.publish(&event, on).await {
        warn!(name = on.name, %error, "an Event was lost");
    }
}

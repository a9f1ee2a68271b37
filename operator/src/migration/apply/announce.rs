//! Events, for people: on the Migration, with its pod as the related object. One that is lost does no harm.

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
    let pod = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: migration.namespace(),
        name: Some(migration.spec.pod.name.clone()),
        uid: migration.spec.pod.uid.clone(),
        ..Default::default()
    };
    let event = Event {
        type_: if announcement.warning { EventType::Warning } else { EventType::Normal },
        reason: announcement.reason.clone(),
        note: Some(announcement.note.clone()),
        action: "Migrate".to_owned(),
        secondary: Some(pod),
    };
    if let Err(error) = context.recorder.publish(&event, &migration.object_ref(&())).await {
        warn!(name = migration.name_any(), %error, "an Event was lost");
    }
    Ok(Outcome::Done)
}

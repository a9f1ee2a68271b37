//! Creates the pods that stand beside the source for a while: the reservation and the rehearsal.

use super::{ApplyError, Outcome, pods};
use crate::migration::Context;
use crate::pod::rehearsal::rehearsal;
use crate::pod::reservation::reservation;
use crate::transition::{RehearsalWish, ReservationWish};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::{Resource, ResourceExt};
use tideover_crds::Migration;

/// Creates the reservation from the source as it is now: requests and scheduling rules are the source's own.
pub(super) async fn reserve(
    context: &Context,
    migration: &Migration,
    wish: &ReservationWish,
) -> Result<Outcome, ApplyError> {
    let image = &context.settings.pause_image;
    create(context, migration, |source, owner| Some(reservation(source, wish, owner, image))).await
}

/// Creates the rehearsal from the source as it is now, if that is still the pod that moves.
pub(super) async fn rehearse(
    context: &Context,
    migration: &Migration,
    wish: &RehearsalWish,
) -> Result<Outcome, ApplyError> {
    let made = |source: &Pod, owner| {
        let same = source.uid().as_ref() == Some(&wish.source_uid);
        same.then(|| rehearsal(source, &wish.name, &wish.node, owner))
    };
    create(context, migration, made).await
}

async fn create(
    context: &Context,
    migration: &Migration,
    made: impl FnOnce(&Pod, OwnerReference) -> Option<Pod>,
) -> Result<Outcome, ApplyError> {
    let pods = pods(context, migration);
    let source = &migration.spec.pod.name;
    let Some(source) = pods.get_opt(source).await.map_err(ApplyError::api("read the pod", source))? else {
        return Ok(Outcome::Overtaken);
    };
    let Some(mut owner) = migration.owner_ref(&()) else { return Ok(Outcome::Overtaken) };
    // The Migration is not the pod's controller: nothing would be made anew if it went.
    owner.controller = None;
    let Some(pod) = made(&source, owner) else { return Ok(Outcome::Overtaken) };
    match pods.create(&PostParams::default(), &pod).await {
        Ok(_) => Ok(Outcome::Done),
        Err(kube::Error::Api(answer)) if answer.code == 409 && answer.reason == "AlreadyExists" => Ok(Outcome::Done),
        Err(kube::Error::Api(answer)) if matches!(answer.code, 400 | 403 | 422) => {
            Ok(Outcome::Refused(answer.message.clone()))
        }
        Err(error) => Err(ApplyError::api("create the pod", &pod.name_any())(error)),
    }
}

//! Creates the reservation pod.

use super::{ApplyError, Outcome, pods};
use crate::migration::Context;
use crate::pod::reservation::reservation;
use crate::transition::ReservationWish;
use kube::api::PostParams;
use kube::{Resource, ResourceExt};
use tideover_crds::Migration;

/// Creates it from the source as it is now: requests and scheduling rules are the source's own.
pub(super) async fn create(
    context: &Context,
    migration: &Migration,
    wish: &ReservationWish,
) -> Result<Outcome, ApplyError> {
    let pods = pods(context, migration);
    let source = &migration.spec.pod.name;
    let Some(source) = pods.get_opt(source).await.map_err(ApplyError::api("read the pod", source))? else {
        return Ok(Outcome::Overtaken);
    };
    let Some(mut owner) = migration.owner_ref(&()) else { return Ok(Outcome::Overtaken) };
    // The Migration is not the pod's controller: nothing would be made anew if it went.
    owner.controller = None;
    let pod = reservation(&source, wish, owner, &context.settings.pause_image);
    match pods.create(&PostParams::default(), &pod).await {
        Ok(_) => Ok(Outcome::Done),
        Err(kube::Error::Api(answer)) if answer.code == 409 && answer.reason == "AlreadyExists" => Ok(Outcome::Done),
        Err(kube::Error::Api(answer)) if matches!(answer.code, 400 | 403 | 422) => {
            Ok(Outcome::Refused(answer.message.clone()))
        }
        Err(error) => Err(ApplyError::api("create the reservation", &pod.name_any())(error)),
    }
}

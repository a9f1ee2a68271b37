//! Puts the parts together, and takes them apart when the process is told to stop.

use crate::admission::{self, Admission, Endpoint, ServeError};
use crate::certificates::{self, CertificateError, ServingCertificate, StoreError};
use crate::health::{self, HealthError};
use crate::leadership;
use crate::migration::{self, Context};
use crate::settings::Settings;
use crate::{maintenance, protection, retention};
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Why the operator ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// Signals can't be had.
    #[error("listen for signals")]
    Signals(#[source] std::io::Error),
    /// There is no API server to be found.
    #[error("find the API server")]
    Client(#[source] Box<kube::Error>),
    /// There is no certificate authority.
    #[error("get the certificate authority")]
    Authority(#[source] StoreError),
    /// There is no certificate for the webhooks.
    #[error("make the webhooks' certificate")]
    Certificate(#[source] CertificateError),
    /// The probes ended.
    #[error("serve the probes")]
    Health(#[source] HealthError),
    /// The webhooks can't be served.
    #[error("serve the webhooks")]
    Webhooks(#[source] ServeError),
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// Where a part that can't be done without fails; the process is then to be started again.
pub async fn run(settings: Settings) -> Result<(), RunError> {
    let stop = stop_on_signal()?;
    let settings = Arc::new(settings);
    let client = Client::try_default().await.map_err(|error| RunError::Client(Box::new(error)))?;
    let reporter = Reporter { controller: "tideover-operator".into(), instance: Some(settings.identity.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);

    let ready = Arc::new(AtomicBool::new(false));
    let probes = health::serve(settings.health_address, ready.clone(), stop.clone());
    let work = async {
        let authority = certificates::load_or_make(&client, &settings.namespace).await.map_err(RunError::Authority)?;
        let authority = Arc::new(authority);
        let certificate = ServingCertificate::make(&authority, &settings.webhook_service, &settings.namespace);
        let certificate = Arc::new(certificate.map_err(RunError::Certificate)?);
        let endpoint = Endpoint::open(settings.webhook_address, certificate.clone()).await;
        let endpoint = endpoint.map_err(RunError::Webhooks)?;
        ready.store(true, Ordering::Relaxed);

        let router = Admission::new(client.clone(), recorder.clone(), settings.operator_user()).router();
        let webhooks = admission::serve(endpoint, router, stop.clone());
        let published = certificates::keep_published(
            client.clone(),
            &settings.namespace,
            &settings.webhook_configuration,
            &authority,
        );
        let leading = leadership::lead(client.clone(), &settings.namespace, &settings.identity, stop.clone(), || {
            let context = Context::new(client.clone(), settings.clone(), recorder.clone());
            let signing = certificates::sign_for_agents(client.clone(), authority.clone(), settings.agent_user());
            let client = client.clone();
            async move {
                tokio::join!(
                    migration::run(context.clone()),
                    protection::run(context.clone()),
                    maintenance::run(context),
                    retention::run(client),
                    signing,
                );
            }
        });
        let until_stopped = async { tokio::join!(webhooks, leading) };
        tokio::select! {
            ((), ()) = until_stopped => Ok(()),
            () = published => Ok(()),
            () = certificate.keep_fresh(&authority) => Ok(()),
        }
    };
    let probes = async { probes.await.map_err(RunError::Health) };
    tokio::try_join!(probes, work)?;
    info!("stopped");
    Ok(())
}

fn stop_on_signal() -> Result<CancellationToken, RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("stopping");
        stopping.cancel();
    });
    Ok(stop)
}

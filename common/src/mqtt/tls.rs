//! The files of TLS: authorities, client certificate and its key.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, Error, RootCertStore};

use super::access::read;
use crate::config::Broker;

/// How to speak TLS with this broker; the files are read now.
///
/// # Errors
/// A file cannot be used, in words.
pub(super) fn client(broker: &Broker) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be used: {error}"))?
        .with_root_certificates(roots(broker.ca_file.as_deref())?);
    let config = match (&broker.cert_file, &broker.key_file) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let (cert, file) = (cert.display(), key.display());
            let key = read(key)
                .map_err(PemError::Io)
                .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem))
                .map_err(|error| format!("no private key in {file} (broker.key_file): {error}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| match error {
                    Error::InconsistentKeys(_) => format!(
                        "the key in {file} does not belong to the certificate in {cert}: check broker.key_file and broker.cert_file"
                    ),
                    other => format!("the client certificate in {cert} (broker.cert_file) or its key in {file} (broker.key_file) cannot be used: {other}"),
                })?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let (certificates, from) = match ca_file {
        Some(file) => (
            certificates(file)?,
            format!("{} (broker.ca_file)", file.display()),
        ),
        None => (
            rustls_native_certs::load_native_certs().certs,
            "the system's certificates; set broker.ca_file".to_owned(),
        ),
    };
    // Single bad certificates in a system store are common and harmless.
    let (added, _) = roots.add_parsable_certificates(certificates);
    match added {
        0 => Err(format!("no usable certificate in {from}")),
        _ => Ok(roots),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    read(file)
        .map_err(PemError::Io)
        .and_then(|pem| CertificateDer::pem_slice_iter(&pem).collect())
        .map_err(|error| format!("no certificate in {}: {error}", file.display()))
}

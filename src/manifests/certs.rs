//! `certs/`: what cert-manager makes the webhook's certificate of (T1).
//!
//! A self-signed Issuer makes a CA, and the CA signs the leaf. So a renewed leaf changes no
//! `caBundle`: what the kubelet brings a minute late is verified by what is there all the time.
//! The CA keeps its key when it is renewed, and what was signed before stays good.

use super::Manifest;
use crate::{
    certificates::server_names,
    names::{
        CERT_MANAGER_CA, OPERATOR, OPERATOR_NAMESPACE, WEBHOOK_CERTIFICATE,
        WEBHOOK_CERTIFICATE_SECRET, WEBHOOK_SERVICE,
    },
};
use serde_json::{Value, json};

/// Issues the CA only.
const SELF_SIGNED: &str = "ksm-scale-operator-self-signed";

/// How long the CA and the leaf live, and how long before the end they are renewed. cert-manager
/// refuses less than an hour and five minutes.
const CA_LIFE: [&str; 2] = ["87600h0m0s", "8760h0m0s"];
const LEAF_LIFE: [&str; 2] = ["2160h0m0s", "720h0m0s"];

/// The files in `certs/`. A cluster without cert-manager refuses them.
///
/// # Errors
/// Never on a build that passes the tests: the objects are constant.
pub fn certs() -> Result<Vec<Manifest>, serde_saphyr::ser::Error> {
    let documents = objects().iter().map(super::document).collect::<Result<Vec<_>, _>>()?;
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": ["cert-manager.yaml"],
    });
    Ok(vec![
        Manifest { path: "certs/cert-manager.yaml", text: documents.join("---\n") },
        Manifest { path: "certs/kustomization.yaml", text: super::document(&kustomization)? },
    ])
}

fn objects() -> [Value; 4] {
    [
        object("Issuer", SELF_SIGNED, &json!({"selfSigned": {}})),
        object(
            "Certificate",
            CERT_MANAGER_CA,
            &json!({
                "isCA": true,
                "commonName": CERT_MANAGER_CA,
                "secretName": CERT_MANAGER_CA,
                "duration": CA_LIFE[0],
                "renewBefore": CA_LIFE[1],
                "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Never"},
                "usages": ["cert sign"],
                "issuerRef": issuer(SELF_SIGNED),
            }),
        ),
        object("Issuer", WEBHOOK_CERTIFICATE, &json!({"ca": {"secretName": CERT_MANAGER_CA}})),
        object(
            "Certificate",
            WEBHOOK_CERTIFICATE,
            &json!({
                "secretName": WEBHOOK_CERTIFICATE_SECRET,
                "duration": LEAF_LIFE[0],
                "renewBefore": LEAF_LIFE[1],
                "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
                "usages": ["digital signature", "server auth"],
                "dnsNames": server_names(WEBHOOK_SERVICE, OPERATOR_NAMESPACE),
                "issuerRef": issuer(WEBHOOK_CERTIFICATE),
            }),
        ),
    ]
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "cert-manager.io/v1", "kind": kind,
        "metadata": {
            "name": name, "namespace": OPERATOR_NAMESPACE,
            "labels": {"app.kubernetes.io/part-of": OPERATOR},
        },
        "spec": spec,
    })
}

fn issuer(name: &str) -> Value {
    json!({"group": "cert-manager.io", "kind": "Issuer", "name": name})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cert-manager's own webhook would refuse; it is not there when these are tested on a
    /// real API server.
    #[test]
    fn t1_lives_are_long_enough_for_cert_manager_and_the_ca_outlives_every_leaf() {
        let hours = |text: &str| text.strip_suffix("h0m0s").unwrap().parse::<u32>().unwrap();
        let [ca, leaf] = [CA_LIFE, LEAF_LIFE].map(|life| life.map(hours));
        for [duration, renew_before] in [ca, leaf] {
            assert!(duration >= 1 && renew_before >= 1 && renew_before < duration);
        }
        assert!(ca[1] > leaf[0], "a leaf signed just before the CA is renewed ends before the CA");
    }
}

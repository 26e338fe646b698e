use kube::CustomResourceExt;
fn main() {
    println!(
        "{}",
        serde_json::to_string_pretty(&ksm_scale_operator::api::KSMScale::crd()).unwrap()
    );
}

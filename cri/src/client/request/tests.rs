//! Manifests, and what is asked of CRI for them.

use rtc_cri::proto::ImageSpec;

use super::*;
use crate::client::manifest;

fn place() -> Place {
    Place {
        uid: "u-1".into(),
        data: "/data/u-1".into(),
        logs: "/logs/default_web_u-1".into(),
        cgroup_parent: String::new(),
        unified: true,
        memory: 4 << 30,
        dns: DnsConfig {
            servers: vec!["192.0.2.1".into()],
            ..DnsConfig::default()
        },
    }
}

fn pod(spec: &str) -> Pod {
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web, labels: {{app: x}}}}, spec: {{{spec}}}}}"
    );
    // A flow map is YAML, too, but begins like JSON.
    manifest::read(&format!("---\n{text}")).unwrap().0
}

#[test]
fn a_sandbox_is_asked_for_as_the_kubelet_would() {
    let pod = pod(
        "containers: [{name: a, image: x, ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 81}]}], \
         hostIPC: true, shareProcessNamespace: true, securityContext: {runAsGroup: 5, fsGroup: 7, supplementalGroups: [7, 8]}, \
         dnsConfig: {searches: [a.example]}",
    );
    let config = sandbox(&pod, &place());
    assert_eq!(config.hostname, "web");
    assert_eq!(config.log_directory, "/logs/default_web_u-1");
    assert_eq!(config.labels["io.kubernetes.pod.uid"], "u-1");
    assert_eq!(config.labels["app"], "x");
    assert_eq!(config.port_mappings.len(), 1);
    let dns = config.dns_config.unwrap();
    assert_eq!(
        (dns.servers, dns.searches),
        (vec!["192.0.2.1".into()], vec!["a.example".into()])
    );
    let security = config.linux.unwrap().security_context.unwrap();
    let namespaces = security.namespace_options.unwrap();
    assert_eq!((namespaces.network, namespaces.pid, namespaces.ipc), (0, 0, 2));
    assert_eq!(security.supplemental_groups, [7, 8]);
    assert_eq!(security.run_as_group, None);
}

#[test]
fn a_pod_in_the_host_s_network_has_its_name_and_no_mappings() {
    let pod = pod(
        "containers: [{name: a, image: x, ports: [{containerPort: 80, hostPort: 80}]}], hostNetwork: true",
    );
    let config = sandbox(&pod, &place());
    assert_eq!((config.hostname.as_str(), config.port_mappings.len()), ("", 0));
    assert_eq!(config.dns_config, None);
}

#[test]
fn a_container_is_asked_for_as_the_kubelet_would() {
    let pod = pod(
        "containers: [{name: a, image: x, command: [echo, $(B)], env: [{name: A, value: '1'}, {name: B, value: $(A)2}], \
         resources: {limits: {cpu: 500m, memory: 64Mi, hugepages-2Mi: 4Mi}}, securityContext: {runAsUser: 9, procMount: Unmasked}}, \
         {name: b, image: x}], securityContext: {runAsUser: 7}, terminationGracePeriodSeconds: 3",
    );
    let config = container(
        &pod,
        &pod.containers[0],
        &place(),
        ImageSpec::default(),
        Vec::new(),
    );
    assert_eq!(config.command, ["echo", "12"]);
    assert_eq!(config.envs[1].value, b"12");
    assert_eq!(config.log_path, "a/0.log");
    assert_eq!(config.annotations[GRACE], "3");
    let linux = config.linux.unwrap();
    let resources = linux.resources.unwrap();
    assert_eq!(
        (resources.cpu_period, resources.cpu_quota, resources.cpu_shares),
        (100_000, 50_000, 512)
    );
    assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
    assert_eq!(resources.hugepage_limits[0].page_size, "2MB");
    assert_eq!(resources.unified["memory.oom.group"], "1");
    let security = linux.security_context.unwrap();
    assert_eq!(security.run_as_user.unwrap().value, 9);
    assert!(security.masked_paths.is_empty());
    assert_eq!(security.seccomp.unwrap().profile_type, 0);
    let config = container(
        &pod,
        &pod.containers[1],
        &place(),
        ImageSpec::default(),
        Vec::new(),
    );
    let security = config.linux.unwrap().security_context.unwrap();
    assert_eq!(security.run_as_user.unwrap().value, 7);
    assert!(security.masked_paths.contains(&"/proc/kcore".to_owned()));
}

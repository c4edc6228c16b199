//! Manifests as people write them, and what is said of wrong ones.

use super::*;

/// A pod with this in its spec, beside a container.
fn with_spec(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: a\n    image: x:1\n{spec}"
    )
}

/// A pod whose container has this, too.
fn with_container(container: &str) -> String {
    let lines: String = container.lines().map(|line| format!("    {line}\n")).collect();
    with_spec(&lines)
}

fn refused(text: &str) -> String {
    match read(text) {
        Ok((pod, _)) => panic!("{text}\nwas read: {pod:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_whole_pod_is_read() {
    let (pod, warnings) = read(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, creationTimestamp: null}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  shareProcessNamespace: true
  dnsPolicy: None
  dnsConfig: {nameservers: [10.0.0.1], searches: [a.example], options: [{name: ndots, value: "2"}]}
  securityContext: {runAsUser: 1000, fsGroup: 7, sysctls: [{name: net/ipv4/ip_forward, value: "1"}]}
  initContainers:
  - {name: first, image: busybox, command: [sh, -c, "true"]}
  - {name: proxy, image: "proxy:1", restartPolicy: Always}
  containers:
  - name: web
    image: web@sha256:1234
    args: [--port, "80"]
    env: [{name: A, value: "1"}, {name: B}]
    ports: [{containerPort: 80, hostPort: 8080, name: http}, {containerPort: 53, protocol: UDP}]
    resources:
      requests: {cpu: 0.5, memory: 64Mi}
      limits: {cpu: "1", memory: 64Mi, hugepages-2Mi: 4Mi}
    volumeMounts:
    - {name: data, mountPath: /data, subPath: a/b}
    - {name: etc, mountPath: /host/etc, readOnly: true, recursiveReadOnly: Enabled, mountPropagation: HostToContainer}
    securityContext:
      allowPrivilegeEscalation: false
      capabilities: {add: [NET_ADMIN], drop: [ALL]}
      seccompProfile: {type: Localhost, localhostProfile: a.json}
    lifecycle: {stopSignal: SIGRTMIN+3}
    stdin: true
  volumes:
  - {name: data, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: etc, hostPath: {path: /etc, type: Directory}}
  - {name: files, image: {reference: "files:1"}}
status: {phase: Running}
"#,
    )
    .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(
        (pod.name.as_str(), pod.namespace.as_str(), pod.grace),
        ("web", "shop", 5)
    );
    assert!(pod.share_process_namespace && pod.dns.alone);
    assert_eq!(pod.dns.options, ["ndots:2"]);
    assert_eq!(pod.security.sysctls["net.ipv4.ip_forward"], "1");
    let roles: Vec<Role> = pod.containers.iter().map(|container| container.role).collect();
    assert_eq!(roles, [Role::Init, Role::Sidecar, Role::Main]);
    let pulls: Vec<Pull> = pod.containers.iter().map(|container| container.pull).collect();
    assert_eq!(pulls, [Pull::Always, Pull::IfNotPresent, Pull::IfNotPresent]);
    let web = &pod.containers[2];
    assert_eq!(web.env, [("A".into(), "1".into()), ("B".into(), String::new())]);
    assert_eq!((web.ports[0].host_port, web.ports[1].protocol), (8080, 1));
    assert_eq!(web.requests.cpu.unwrap().milli(), 500);
    assert_eq!(web.limits.huge_pages[0].1.value(), 4 << 20);
    assert_eq!(web.mounts[0].sub_path, "a/b");
    assert!(web.mounts[1].recursive_read_only && web.mounts[1].propagation == 1);
    assert!(web.security.no_new_privileges && web.stdin);
    let seccomp = web.security.own.seccomp.as_ref().unwrap();
    assert_eq!(seccomp.localhost_ref, "/var/lib/kubelet/seccomp/a.json");
    assert_eq!(web.stop_signal, i32::from(rtc_cri::proto::Signal::Sigrtminplus3));
    let same = web.security.own.or(&pod.security.common);
    assert_eq!(same.run_as_user, Some(1000));
}

#[test]
fn what_needs_a_cluster_is_refused_by_its_name() {
    for (text, told) in [
        (
            with_spec("  volumes: [{name: v, secret: {secretName: s}}]"),
            "spec.volumes[0].secret: needs a cluster",
        ),
        (
            with_spec("  volumes: [{name: v, configMap: {name: s}}]"),
            "spec.volumes[0].configMap: needs a cluster",
        ),
        (
            with_container("envFrom: [{configMapRef: {name: c}}]"),
            "spec.containers[0].envFrom: there are no ConfigMaps and Secrets here: write the variables under env (line 9)",
        ),
        (
            with_container("env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]"),
            "spec.containers[0].env[0].valueFrom: secretKeyRef can't be had here: write the value under value",
        ),
        (
            with_spec("  hostUsers: false"),
            "spec.hostUsers: false: can't be done here: a kubelet",
        ),
        (
            with_spec("  resourceClaims: []"),
            "spec.resourceClaims: there is no cluster here",
        ),
        (
            with_container("resources: {limits: {vendor.com/gpu: 1}}"),
            "spec.containers[0].resources.limits[\"vendor.com/gpu\"]: 1: can't be had here",
        ),
    ] {
        let error = refused(&text);
        assert!(error.starts_with(told), "{error}");
    }
}

#[test]
fn what_a_pod_can_do_without_is_warned_of() {
    let container = "livenessProbe: {httpGet: {port: 80}}\nlifecycle: {preStop: {exec: {command: [x]}}}";
    let (_, warnings) = read(&with_container(container)).unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(
        warnings[1],
        "spec.containers[0].livenessProbe: ignored: probes need a kubelet (line 9)"
    );
    let spec = "  restartPolicy: Always\n  serviceAccountName: bot\n  imagePullSecrets: [{name: s}]\n  nodeSelector: {a: b}\n";
    let (_, warnings) = read(&with_spec(spec)).unwrap();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(
        warnings[0].contains("serviceAccountName: ignored: no token"),
        "{warnings:?}"
    );
    let (_, warnings) = read(&with_spec(
        "  serviceAccountName: default\n  restartPolicy: Never\n",
    ))
    .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_wrong_value_is_told_with_its_path_and_what_to_do() {
    for (text, told) in [
        ("kind: Pod".into(), "apiVersion: is missing: give v1"),
        (
            "apiVersion: apps/v1".into(),
            "apiVersion: \"apps/v1\": must be v1",
        ),
        (
            "apiVersion: v1\nkind: Deployment".into(),
            "kind: \"Deployment\": must be Pod: of a workload",
        ),
        (
            "apiVersion: v1\nkind: Pod\nspec: {}".into(),
            "metadata: is missing",
        ),
        ("- a".into(), "the manifest: must be a map (line 1)"),
        (
            "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"A\"}, \"spec\": {}}"
                .into(),
            "metadata.name: \"A\": must be at most 253 lower case letters",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}".into(),
            "spec.containers: must have at least one container (line 4)",
        ),
        (with_container("image: y"), "line 9: \"image\" is there twice"),
        (
            with_container("imagePullPolicy: Sometimes"),
            "spec.containers[0].imagePullPolicy: \"Sometimes\": must be Always or",
        ),
        (
            with_container("comand: [a]"),
            "spec.containers[0].comand: is no field of a Pod: is \"command\" meant? (line 9)",
        ),
        (
            with_container("command: ls -l"),
            "spec.containers[0].command: \"ls -l\": must be a list (line 9)",
        ),
        (
            with_container("args: [1]"),
            "spec.containers[0].args[0]: 1: must be text: put it in quotes",
        ),
        (
            with_container("env: [{name: A, value: yes}]"),
            "spec.containers[0].env[0].value: true: must be text: put it in quotes",
        ),
        (
            with_container("env: [{name: A=B}]"),
            "spec.containers[0].env[0].name: \"A=B\": must have no '='",
        ),
        (
            with_container("ports: [{containerPort: 0}]"),
            "spec.containers[0].ports[0].containerPort: 0: must be a whole number, 1 to 65535",
        ),
        (
            with_container("ports: [{hostPort: 1}]"),
            "spec.containers[0].ports[0].containerPort: is missing",
        ),
        (
            with_container("ports: [{containerPort: 1, hostIP: x}]"),
            "spec.containers[0].ports[0].hostIP: \"x\": must be an IPv4",
        ),
        (
            with_container("resources: {limits: {memory: 64 MB}}"),
            "spec.containers[0].resources.limits[\"memory\"]: \"64 MB\": must be a quantity",
        ),
        (
            with_container("resources: {requests: {cpu: 2}, limits: {cpu: 1}}"),
            "spec.containers[0].resources: requests.cpu must not be more than limits.cpu",
        ),
        (
            with_container("workingDir: tmp"),
            "spec.containers[0].workingDir: \"tmp\": must be an absolute path",
        ),
        (
            with_container("tty: \"true\""),
            "spec.containers[0].tty: \"true\": must be true or false, without quotes",
        ),
        (
            with_container("volumeMounts: [{name: v, mountPath: /v}]"),
            "container \"a\": volumeMounts: \"v\": is none of spec.volumes",
        ),
        (
            with_container("volumeMounts: [{name: v, mountPath: /v, subPath: ../x}]"),
            "spec.containers[0].volumeMounts[0].subPath: \"../x\": must be a path in the volume",
        ),
        (
            with_container("lifecycle: {stopSignal: TERM}"),
            "spec.containers[0].lifecycle.stopSignal: \"TERM\": must be a signal",
        ),
        (
            with_container("securityContext: {runAsUser: -1}"),
            "spec.containers[0].securityContext.runAsUser: -1: must be a whole number",
        ),
        (
            with_container("securityContext: {seccompProfile: {type: Localhost}}"),
            "spec.containers[0].securityContext.seccompProfile: type Localhost needs",
        ),
        (
            with_container("securityContext: {privileged: true, allowPrivilegeEscalation: false}"),
            "spec.containers[0].securityContext.allowPrivilegeEscalation: false: can't be together with privileged",
        ),
        (
            with_spec("  volumes: [{name: v}]"),
            "spec.volumes[0]: must have one of emptyDir, hostPath, image",
        ),
        (
            with_spec("  volumes: [{name: v, emptyDir: {}, hostPath: {path: /x}}]"),
            "spec.volumes[0]: must have only one",
        ),
        (
            with_spec("  volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]"),
            "spec.volumes[1].name: \"v\": another volume has it",
        ),
        (
            with_spec("  volumes: [{name: v, hostPath: {path: /x/../y}}]"),
            "spec.volumes[0].hostPath.path: \"/x/../y\": must have no \"..\"",
        ),
        (
            with_spec("  volumes: [{name: v, emptyDir: {medium: Disk}}]"),
            "spec.volumes[0].emptyDir.medium: \"Disk\": must be Memory",
        ),
        (
            with_spec("  dnsPolicy: None"),
            "spec.dnsPolicy: \"None\": needs spec.dnsConfig.nameservers",
        ),
        (
            with_spec("  hostPID: true\n  shareProcessNamespace: true"),
            "spec.shareProcessNamespace: true: can't be together with hostPID",
        ),
        (
            with_spec("  initContainers: [{name: a, image: y}]"),
            "spec.containers[0].name: \"a\": another container has it",
        ),
        (
            with_spec("  hostNetwork: \"yes\""),
            "spec.hostNetwork: \"yes\": must be true or false",
        ),
        (
            with_spec("  terminationGracePeriodSeconds: -1"),
            "spec.terminationGracePeriodSeconds: -1: must be a whole number, 0 to 86400",
        ),
    ] {
        let error = refused(&text);
        assert!(
            error.starts_with(told),
            "{told:?} is not how this begins: {error}\n{text}"
        );
    }
}

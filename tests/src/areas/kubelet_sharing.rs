//! What the containers of a pod share with each other, and with the node.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::cri::names;
use crate::host::process;
use crate::kubelet::{NODE_IP, Node, STAY, busybox, busybox_with, with};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

const WEB: &str = "mkdir -p /www; echo page >/www/page; trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait";

test!(
    fn containers_of_a_pod_share_localhost_ipc_and_memory_and_have_their_own_processes(t: &Test) -> Result {
        with(t, |node| {
            let spec = json!({"containers": [
                busybox("web", &format!("echo shared >/dev/shm/file; {WEB}")), busybox("client", STAY),
            ]});
            let pod = node.up("shared", spec)?;
            until("the web server", || {
                let page = node.exec(&pod, "client", "wget -q -O - http://127.0.0.1:8080/page; true")?;
                Ok((page == "page").then_some(()))
            })?;
            ensure!(node.exec(&pod, "client", "cat /dev/shm/file")? == "shared");
            for (kind, same) in [
                ("net", true),
                ("ipc", true),
                ("uts", true),
                ("pid", false),
                ("mnt", false),
            ] {
                let [web, client] = ["web", "client"]
                    .map(|name| process::namespace(&node.main_pid(&pod, name)?.to_string(), kind));
                ensure!((web? == client?) == same, "{kind}");
            }
            let seen = node.exec(&pod, "client", "ps; cat /etc/hostname; hostname")?;
            ensure!(!seen.contains("httpd"), "{seen}");
            ensure!(seen.ends_with("shared-node\nshared-node"), "{seen}");
            Ok(())
        })
    }
);

test!(
    fn a_pod_that_shares_its_processes_shows_them_and_may_signal_them(t: &Test) -> Result {
        with(t, |node| {
            let spec = json!({"shareProcessNamespace": true, "containers": [
                busybox("one", "exec sleep 4321"), busybox("two", STAY),
            ]});
            let pod = node.up("processes", spec)?;
            let seen = node.exec(&pod, "two", "ps")?;
            ensure!(seen.contains("sleep 4321"), "{seen}");
            let first = node.exec(&pod, "two", "tr '\\0' ' ' </proc/1/cmdline; true")?;
            ensure!(!first.contains("sleep"), "pid 1 is {first:?}");
            node.exec(
                &pod,
                "two",
                "kill -9 $(ps | grep '[s]leep 4321' | sed 's/^ *//; s/ .*//')",
            )?;
            let pod = node.until_pod("processes", "restarted", |pod| pod.restarts("one") == 1)?;
            ensure!(pod.restarts("two") == 0, "{}", pod.0["status"]);
            Ok(())
        })
    }
);

test!(
    fn a_pod_of_the_hosts_namespaces_has_them(t: &Test) -> Result {
        with(t, |node| {
            let spec = json!({
                "hostNetwork": true, "hostPID": true, "hostIPC": true,
                "containers": [busybox("main", STAY)],
            });
            let pod = node.up("host", spec)?;
            let pid = node.main_pid(&pod, "main")?.to_string();
            for (kind, same) in [("net", true), ("pid", true), ("ipc", true), ("mnt", false)] {
                let (own, its) = (process::namespace("self", kind)?, process::namespace(&pid, kind)?);
                ensure!((own == its) == same, "{kind}: {its}, the node's {own}");
            }
            names(
                &node.exec(&pod, "main", "ip addr show up0; ps")?,
                &[NODE_IP, "kubelet"],
            )
        })
    }
);

fn page_at(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET /page HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

test!(
    fn a_port_of_the_host_leads_to_the_pod_and_goes_with_it(t: &Test) -> Result {
        with(t, |node| {
            let web = busybox_with(
                "web",
                WEB,
                &json!({"ports": [{"containerPort": 8080, "hostPort": 18080}]}),
            );
            let pod = node.up("port", json!({"containers": [web]}))?;
            let address = format!("{NODE_IP}:18080");
            until("the page", || {
                Ok(page_at(&address).filter(|text| text.contains("page\n")))
            })?;
            let direct = page_at(&format!("{}:8080", pod.address())).context("the pod's own address")?;
            names(&direct, &["page\n"])?;
            node.withdraw("port")?;
            node.until_gone("port")?;
            ensure!(page_at(&address).is_none(), "the port is still there");
            Ok(())
        })
    }
);

/// A pod that answers each datagram with its own name, at a port of the host.
fn answers(node: &Node<'_>, name: &str) -> Result {
    let program = node.t.path("rtc-tests");
    node.t.link_shared("rtc-tests", &program)?;
    let fields = json!({
        "ports": [{"containerPort": 5300, "hostPort": 15300, "protocol": "UDP"}],
        "volumeMounts": [{"name": "program", "mountPath": "/rtc-tests"}],
    });
    let spec = json!({
        "volumes": [{"name": "program", "hostPath": {"path": program, "type": "File"}}],
        "containers": [busybox_with("main", &format!("exec /rtc-tests payload datagrams 5300 {name}"), &fields)],
    });
    node.up(name, spec)?;
    Ok(())
}

/// The answer to a datagram; `None` where none comes.
fn asked(socket: &UdpSocket, text: &str) -> Option<String> {
    socket.send(text.as_bytes()).ok()?;
    let mut answer = [0; 100];
    let length = socket.recv(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
}

test!(
    fn a_udp_port_of_the_host_leads_to_the_pod_that_has_it_now(t: &Test) -> Result {
        with(t, |node| {
            // One client all the time: what the kernel remembers of its connection must not lead to a pod that is gone.
            let socket = UdpSocket::bind((NODE_IP, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            socket.connect((NODE_IP, 15300))?;
            ensure!(asked(&socket, "x").is_none(), "somebody answers before");
            for name in ["first", "second"] {
                answers(node, name)?;
                until(&format!("an answer of {name}"), || {
                    Ok((asked(&socket, "one").as_deref() == Some(&format!("{name} one"))).then_some(()))
                })?;
                node.withdraw(name)?;
                node.until_gone(name)?;
                ensure!(asked(&socket, "x").is_none(), "somebody answers after {name}");
            }
            Ok(())
        })
    }
);

test!(
    fn names_and_settings_of_a_pod_are_what_it_says(t: &Test) -> Result {
        with(t, |node| {
            let spec = json!({
                "hostname": "chosen", "subdomain": "sub",
                "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["one.example", "two.example"]}],
                "dnsPolicy": "None",
                "dnsConfig": {
                    "nameservers": ["10.9.8.7"], "searches": ["a.example", "b.example"],
                    "options": [{"name": "ndots", "value": "3"}],
                },
                "securityContext": {"sysctls": [
                    {"name": "net.ipv4.ping_group_range", "value": "0 1000"},
                    {"name": "kernel.shm_rmid_forced", "value": "1"},
                ]},
                "containers": [busybox("main", "hostname; cat /etc/hosts /etc/resolv.conf \
                    /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/shm_rmid_forced")],
            });
            let seen = node.output("settings", spec)?;
            names(
                &seen,
                &[
                    "chosen\n",
                    "10.1.2.3\tone.example\ttwo.example",
                    "nameserver 10.9.8.7",
                    "search a.example b.example",
                    "options ndots:3",
                    "0\t1000",
                ],
            )?;
            ensure!(seen.trim_end().ends_with('1'), "{seen}");
            let own = fs::read_to_string("/proc/sys/net/ipv4/ping_group_range")?;
            ensure!(own.trim() != "0\t1000", "the node's own was changed");
            Ok(())
        })
    }
);

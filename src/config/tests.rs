//! The configuration from its users' view: files, variables, flags, and the errors about wrong ones.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::*;

/// Loads a file's text and an environment, and nothing else; `{path}` in an error is the file's path.
fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.toml");
    std::fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let shown = path.display().to_string();
    Config::load(&Sources { file: Some(path), environment, dir: None })
        .map_err(|Faults(faults)| faults.iter().map(|fault| fault.replace(&shown, "{path}")).collect())
}

fn faults(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    load(text, environment).unwrap_err()
}

/// Loads a configuration that is valid except for `more`.
fn with(more: &str) -> Result<Config, Vec<String>> {
    load(more, &[("AWS_REGION", "eu-west-2")])
}

#[test]
fn the_documented_file_equals_the_defaults_key_for_key() {
    let table: serde_json::Value = ::config::Config::builder()
        .add_source(::config::File::from_str(DOCUMENTED, ::config::FileFormat::Toml))
        .build()
        .unwrap()
        .try_deserialize()
        .unwrap();
    let documented: Settings = serde_json::from_value(table.clone()).unwrap();
    assert_eq!(documented, Settings::default(), "a default");

    let names = |value: &serde_json::Value| -> Vec<String> {
        fn walk(prefix: &str, value: &serde_json::Value, into: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(map) => {
                    map.iter().for_each(|(name, inner)| walk(&format!("{prefix}.{name}"), inner, into));
                }
                _ => into.push(prefix.into()),
            }
        }
        let mut all = Vec::new();
        walk("", value, &mut all);
        all.sort();
        all
    };
    assert_eq!(names(&table), names(&serde_json::to_value(Settings::default()).unwrap()), "a key");
}

#[test]
fn every_documented_key_has_a_sentence() {
    let lines: Vec<&str> = DOCUMENTED.lines().collect();
    for pair in lines.windows(2).filter(|pair| pair[1].contains(" = ") && !pair[1].starts_with('#')) {
        assert!(pair[0].starts_with("# "), "{}", pair[1]);
    }
}

#[test]
fn parts_defaults_are_the_documented_ones() {
    let config = with("").unwrap();
    assert_eq!(config.pacer(), pacer::Options::default());
    assert_eq!(config.ingress(), ingress::Options::default());
    assert_eq!(config.sender().policy.backoff, Backoff::default());
    assert_eq!(config.queue().dead_kept_for, Duration::from_secs(7 * 86_400));
    assert_eq!(config.queue().bytes_max, 128 << 20);
    assert_eq!(config.settings.shutdown.grace, Duration::from_secs(25));
}

#[test]
fn environment_overrides_the_file_and_flags_override_both() {
    let text = "[sender]\nregion = 'eu-west-2'\nrate_max = 5\nbackoff.max = '3s'\n[ingress]\nsocket = '/file/a.sock'";
    let config = load(
        text,
        &[
            ("CONNECT_RELAY__SENDER__RATE_MAX", "7.5"),
            ("CONNECT_RELAY__SENDER__BACKOFF__MAX", "4s"),
            ("CONNECT_RELAY__INGRESS__CONTENT_CHARS_MAX__PLAIN", "4096"),
            ("CONNECT_RELAY__INGRESS__ALLOW_UIDS", "1000,1001"),
            ("CONNECT_RELAY__QUEUE__VOLATILE", "true"),
            ("AWS_REGION", "us-east-1"),
        ],
    )
    .unwrap();
    assert_eq!(config.settings.sender.region, "eu-west-2");
    assert!((config.pacer().rate_max - 7.5).abs() < f64::EPSILON);
    assert_eq!(config.queue().due_max, Duration::from_secs(60), "a retry header can ask for so much");
    assert_eq!(config.limits().content_chars, [4096, 1024, 12000, 12288]);
    assert_eq!(config.settings.ingress.allow_uids, [1000, 1001]);
    assert!(config.queue().volatile);

    let environment = vec![("CONNECT_RELAY__INGRESS__SOCKET".into(), "/env/a.sock".into()), region("eu-west-2")];
    let config = Config::load(&Sources { file: None, environment, dir: Some("/flag".into()) }).unwrap();
    assert_eq!(config.settings.ingress.socket, Path::new("/flag/relay.sock"));
}

fn region(name: &str) -> (OsString, OsString) {
    ("AWS_REGION".into(), name.into())
}

#[test]
fn dir_holds_sockets_and_queue_and_touches_nothing_else() {
    let plain = Config::load(&Sources { environment: vec![region("eu-west-2")], ..Sources::default() }).unwrap();
    let sources = Sources { environment: vec![region("eu-west-2")], dir: Some("/tmp/r".into()), file: None };
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.settings.ingress.socket, Path::new("/tmp/r/relay.sock"));
    assert_eq!(config.settings.control.socket, Path::new("/tmp/r/private/control.sock"));
    assert_eq!(config.settings.queue.path, Path::new("/tmp/r/private/queue"));
    assert_eq!(plain.changes(&config), ["control.socket", "ingress.socket", "queue.path"]);
}

#[test]
fn every_fault_is_reported_with_its_source_its_key_and_what_is_allowed() {
    let text = "[sender]\nquota_rate = 0\nregoin = 'eu-west-2'\n[ingress]\nwait = 4\n[sendr]\nlifetime = '1h'";
    let found = faults(text, &[("CONNECT_RELAY__QUEUE__PATHS", "/q"), ("CONNECT_RELAY__SHUTDOWN__GRACE", "2h")]);
    let expected = [
        "{path}: ingress.wait = 4: must be a duration with its unit, such as \"250ms\", \"4s\" or \"15m\"",
        "{path}: sender.regoin = \"eu-west-2\": unknown key `regoin`, expected one of `region`, `endpoint`",
        "{path}: sendr.lifetime = \"1h\": unknown key `sendr`, expected one of `ingress`, `queue`, `sender`",
        "CONNECT_RELAY__QUEUE__PATHS: queue.paths = \"/q\": unknown key `paths`, expected one of `path`",
        "default: sender.region = \"\": must be set, or AWS_REGION, or sender.endpoint",
        "{path}: sender.quota_rate = 0.0: must be 0.01 to 100000.0",
        "CONNECT_RELAY__SHUTDOWN__GRACE: shutdown.grace = 2h: must be 0s to 1h",
    ];
    for expected in expected {
        assert!(found.iter().any(|fault| fault.starts_with(expected)), "{expected}\nin {found:#?}");
    }
    assert!(found.iter().all(|fault| expected.iter().any(|expected| fault.starts_with(expected))), "{found:#?}");
}

#[test]
fn each_rule_refuses_its_violations_with_an_error() {
    for (text, expected) in [
        ("ingress.tcp = '0.0.0.0:8480'", "{path}: ingress.tcp = 0.0.0.0:8480: must be a loopback address"),
        (
            "ingress.tcp = 'localhost:8480'",
            "{path}: ingress.tcp = \"localhost:8480\": must be an IP address and a port",
        ),
        ("ingress = {tcp = '127.0.0.1:0', allow_gids = [7]}", "{path}: ingress.tcp = 127.0.0.1:0: must be empty while"),
        ("ingress.tcp = '127.0.0.1:9581'", "{path}: admin.listen = 127.0.0.1:9581: must be another port"),
        (
            "control.socket = '/run/connect-relay/c.sock'",
            "{path}: control.socket = /run/connect-relay/c.sock: must be in",
        ),
        (
            "ingress.socket = '/var/lib/connect-relay/queue/a'",
            "{path}: ingress.socket = /var/lib/connect-relay/queue/a: must be outside",
        ),
        ("ingress.socket = ''", "{path}: ingress.socket = \"\": must be a path"),
        ("ingress.socket_mode = 432", "{path}: ingress.socket_mode = 432: must be octal permissions in quotes"),
        (
            "sender.backoff.max = '100ms'",
            "{path}: sender.backoff.initial = 200ms: must be at most sender.backoff.max, which is 100ms",
        ),
        ("ingress.content_bytes_max = '300KiB'", "{path}: ingress.content_bytes_max = 300KiB: must be 1 to 256KiB"),
        ("queue.key_file = '/nowhere'", "{path}: queue.key_file = /nowhere: No such file"),
        (
            "queue.path = 'relay/queue'",
            "{path}: queue.path = relay/queue: must be an absolute path, probably {cwd}/relay/queue",
        ),
        ("queue.path = '~/queue'", "{path}: queue.path = ~/queue: must be an absolute path, probably /home/bot/queue"),
        (
            "queue.key_file = '$HOME/keys'",
            "{path}: queue.key_file = $HOME/keys: must be an absolute path, probably /home/bot/keys",
        ),
        (
            "sender.ca_file = 'ca.pem'",
            "{path}: sender.ca_file = ca.pem: must be an absolute path, probably {cwd}/ca.pem",
        ),
        (
            "ingress.socket = '${HOME}/relay.sock'",
            "{path}: ingress.socket = ${HOME}/relay.sock: must be an absolute path, probably /home/bot/relay.sock",
        ),
        (
            "control.socket = '$NO/c.sock'",
            "{path}: control.socket = $NO/c.sock: must be an absolute path, probably /var/lib/connect-relay/control.sock",
        ),
        (
            "ingress.socket_mode = '432'",
            "{path}: ingress.socket_mode = \"432\": must be octal permissions in quotes, such as",
        ),
        (
            "ingress.content_limits = 'bytes'",
            "{path}: ingress.content_limits = \"bytes\": must be \"by_type\" or \"by_size\"",
        ),
        ("sender = 5", "{path}: sender = 5: must be a table"),
        ("queue.messages_max = 1.5", "{path}: queue.messages_max = 1.5: must be a whole number"),
        ("queue.damaged = 'ignore'", "{path}: queue.damaged = \"ignore\": must be \"set_aside\" or \"refuse\""),
        ("sender.endpoint = 'http://example.com'", "{path}: sender.endpoint = http://example.com/: must be https"),
        ("sender.region = 'evil.example/'", "{path}: sender.region = evil.example/: must be a region's name"),
        ("sender.proxy = 'https://proxy:3128'", "{path}: sender.proxy = https://proxy:3128/: must be http://host:port"),
        ("sender.proxy = 'http://me:hush@proxy:3128'", "{path}: sender.proxy = (not shown): must be a whole URL"),
        ("sender.headroom = 1", "{path}: sender.headroom = 1: must be 0 to less than 1"),
        ("sender.rate_min = 20", "{path}: sender.rate_min = 20.0: must be at most sender.quota_rate, which is 10.0"),
        ("sender.lifetime = '8d'", "{path}: sender.lifetime = 8d: must be 1s to 7d"),
        ("sender.backoff.multiplier = 0.5", "{path}: sender.backoff.multiplier = 0.5: must be 1.0 to 10.0"),
        ("sender.backoff.randomization = nan", "{path}: sender.backoff.randomization = NaN: must be a number"),
        ("sender.ca_file = '/nowhere'", "{path}: sender.ca_file = /nowhere: No such file"),
        ("fleet.servers = ['a:4222']", "{path}: fleet.servers = [\"a:4222\"]: must be a list of servers, such as"),
        ("fleet.servers = ['nats://me:hush@a:0']", "{path}: fleet.servers = [(not shown)]: must be a list of servers"),
        ("fleet.name = ''", "{path}: fleet.name = \"\": must be 1 to 200 characters"),
        ("fleet.ca_file = 'ca.pem'", "{path}: fleet.ca_file = ca.pem: must be an absolute path, probably {cwd}/ca.pem"),
        (
            "fleet.credentials_file = '~/a.creds'",
            "{path}: fleet.credentials_file = ~/a.creds: must be an absolute path",
        ),
        ("log.level = 'loud'", "{path}: log.level = \"loud\": must be \"error\" or \"warn\""),
        ("admin = 5", "{path}: admin = 5: must be a table"),
        ("[extra]", "{path}: extra = a table: unknown key `extra`"),
        ("[Sender]\nlifetime = '1h'", "{path}: Sender.lifetime = \"1h\": unknown key `Sender`"),
        ("[ingress\n", "{path}: TOML parse error at line 1, column 9"),
    ] {
        let found = load(text, &[("AWS_REGION", "eu-west-2"), ("HOME", "/home/bot")]).err().unwrap_or_default();
        let expected = expected.replace("{cwd}", std::env::current_dir().unwrap().to_str().unwrap());
        assert!(found.len() == 1 && found[0].starts_with(&expected), "{text}: {found:#?}");
    }
}

#[test]
fn an_empty_table_is_no_fault() {
    assert!(with("[queue]\n[log]").is_ok());
}

#[test]
fn one_underscore_is_a_warning_that_names_the_right_variable() {
    let one = ("CONNECT_RELAY_SENDER_REGION", "eu-west-2");
    let found = faults("", &[one]);
    assert_eq!(
        found.last().unwrap(),
        "CONNECT_RELAY_SENDER_REGION is not read: it takes two underscores, CONNECT_RELAY__SENDER__REGION"
    );
    let config = load(
        "",
        &[one, ("AWS_REGION", "eu-west-2"), ("CONNECT_RELAY_PORT_9581_TCP", "tcp://10.0.0.1:9581"), ("PATH", "/bin")],
    )
    .unwrap();
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
}

#[test]
fn file_that_is_not_read_yields_its_own_error_and_nothing_that_follows_from_it() {
    let found = faults("[sender]\nregion = 'eu-west-2'\nrate_min = = 3", &[("CONNECT_RELAY__SENDER__RATE_MIN", "50")]);
    assert!(found.len() == 1 && found[0].starts_with("{path}: TOML parse error at line 3"), "{found:#?}");
    // Errors of the environment by itself are still reported.
    let found = faults("[sender", &[("CONNECT_RELAY__SHUTDOWN__GRACE", "2h"), ("CONNECT_RELAY__QUEUE__PATH", "q")]);
    assert_eq!(found.len(), 3, "{found:#?}");
    let found = faults("sender = 5", &[]);
    assert_eq!(found, ["{path}: sender = 5: must be a table"]);
}

#[test]
fn variables_of_a_kubernetes_service_are_no_warnings_and_settings_with_one_underscore_are() {
    let service = [
        ("CONNECT_RELAY_FOO_SERVICE_HOST", "10.0.0.1"),
        ("CONNECT_RELAY_FOO_SERVICE_PORT", "8480"),
        ("CONNECT_RELAY_FOO_SERVICE_PORT_HTTP_API", "8480"),
        ("CONNECT_RELAY_FOO_PORT", "tcp://10.0.0.1:8480"),
        ("CONNECT_RELAY_FOO_PORT_8480_TCP", "tcp://10.0.0.1:8480"),
        ("CONNECT_RELAY_FOO_PORT_8480_TCP_PROTO", "tcp"),
        ("CONNECT_RELAY_FOO_PORT_8480_TCP_PORT", "8480"),
        ("CONNECT_RELAY_FOO_PORT_8480_TCP_ADDR", "10.0.0.1"),
        ("CONNECT_RELAY_A_B_2_PORT_53_UDP_ADDR", "fd00::1"),
        ("CONNECT_RELAY_SERVICE_HOST", "10.0.0.1"),
        ("CONNECT_RELAY_SERVICE_PORT_METRICS", "9581"),
        ("CONNECT_RELAY_PORT", "udp://10.0.0.1:53"),
        ("CONNECT_RELAY_PORT_53_SCTP_PROTO", "sctp"),
    ];
    let region = ("AWS_REGION", "eu-west-2");
    let warnings = |more: &[(&str, &str)]| load("", &[&[region], more].concat()).unwrap().warnings;
    assert_eq!(warnings(&service), Vec::<String>::new());
    for mistaken in [
        ("CONNECT_RELAY_SENDER_REGION", "eu-west-2"),
        ("CONNECT_RELAY_INGRESS_SOCKET_MODE", "0660"),
        ("CONNECT_RELAY_ADMIN_PORT", "9581"),
        ("CONNECT_RELAY_ADMIN_LISTEN", "[::]:9581"),
        ("CONNECT_RELAY_FOO_PORT_X_TCP", "1"),
        ("CONNECT_RELAY_IMPORT_8480", "1"),
        ("CONNECT_RELAY_FOO_PORT_8480_TCP_HOST", "x"),
    ] {
        let found = warnings(&[mistaken]);
        assert!(found.len() == 1 && found[0].starts_with(mistaken.0), "{found:?}");
    }
}

#[test]
fn dir_is_relative_to_the_working_folder_and_names_no_variable() {
    let of = |dir: &str| {
        let environment = vec![region("eu-west-2"), ("HOME".into(), "/home/bot".into())];
        Config::load(&Sources { environment, dir: Some(dir.into()), file: None })
    };
    let here = std::env::current_dir().unwrap();
    assert_eq!(of("relay").unwrap().settings.ingress.socket, here.join("relay/relay.sock"));
    assert_eq!(of("/").unwrap().settings.queue.path, Path::new("/private/queue"));
    let Faults(found) = of("~/relay").unwrap_err();
    let expected = "--dir = ~/relay: no shell expands it here; probably /home/bot/relay";
    assert_eq!(found, [expected]);
}

#[test]
fn limits_by_size_are_bytes_alone_and_by_type_stays_the_default() {
    assert_eq!(with("").unwrap().limits(), Limits { content_bytes: 16384, content_chars: [1024, 1024, 12000, 12288] });
    let by_size = with("ingress.content_limits = 'by_size'").unwrap();
    assert_eq!(by_size.limits(), Limits { content_bytes: 16384, content_chars: [0; 4] });
    assert_eq!(by_size.note_on_limits(), None);
    assert!(with("").unwrap().note_on_limits().unwrap().contains("16,384 bytes for every type"));
    let both = with("ingress.content_limits = 'by_size'\ningress.content_chars_max.plain = 5000").unwrap();
    assert_eq!(both.warnings, ["ingress.content_chars_max.plain is not used: ingress.content_limits is \"by_size\""]);
}

#[test]
fn a_key_file_is_read_and_its_change_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let text = format!("queue.key_file = '{}'", path.display());
    let [one, two] = ["A", "B"].map(|letter| format!("{}=\n", letter.repeat(43).replace('B', "E")));
    std::fs::write(&path, &one).unwrap();
    let before = with(&text).unwrap();
    for changed in [format!("{two}{one}"), format!("{one}{two}"), two] {
        std::fs::write(&path, &changed).unwrap();
        assert_eq!(before.changes(&with(&text).unwrap()), ["queue.key_file"], "{changed}");
    }
    std::fs::write(&path, format!("# a comment\n{one}")).unwrap();
    assert!(before.changes(&with(&text).unwrap()).is_empty());
}

#[test]
fn a_body_that_is_too_small_for_the_longest_content_is_a_warning() {
    let config = with("ingress.body_bytes_max = '4KiB'").unwrap();
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].starts_with("ingress.content_bytes_max = 16KiB exceeds ingress.body_bytes_max"));
    assert!(with("").unwrap().warnings.is_empty());
}

#[test]
fn region_is_read_from_the_variables_of_aws_tools() {
    let both = [("AWS_DEFAULT_REGION", "us-east-1"), ("AWS_REGION", "eu-west-2")];
    assert_eq!(load("", &both).unwrap().settings.sender.region, "eu-west-2");
    assert_eq!(load("", &both[..1]).unwrap().settings.sender.region, "us-east-1");
    let found = faults("", &[("AWS_REGION", "EU")]);
    assert!(found[0].starts_with("AWS_REGION: sender.region = EU: must be a region's name"), "{found:?}");
}

#[test]
fn the_endpoint_follows_the_region_unless_it_is_set() {
    for (region, expected) in [
        ("us-east-1", "https://participant.connect.us-east-1.amazonaws.com/"),
        ("cn-north-1", "https://participant.connect.cn-north-1.amazonaws.com.cn/"),
        ("eusc-de-east-1", "https://participant.connect.eusc-de-east-1.amazonaws.eu/"),
    ] {
        assert_eq!(load("", &[("AWS_REGION", region)]).unwrap().participant().endpoint.to_string(), expected);
    }
    let config = load("sender.endpoint = 'http://127.0.0.1:9580/base'", &[]).unwrap();
    assert_eq!(config.endpoint().to_string(), "http://127.0.0.1:9580/base");
}

#[test]
fn check_output_is_an_equal_configuration() {
    let text = "[sender]\nendpoint = 'http://127.0.0.1:9580'\nrate_max = 3\nconnect_instance = 'a \"b\"'\n\
                [ingress]\nallow_gids = [5, 6]\nbody_bytes_max = 100000";
    let config = load(text, &[("CONNECT_RELAY__LOG__LEVEL", "debug")]).unwrap();
    let printed = config.effective();
    assert!(config.set().any(|set| set == ("log.level", "CONNECT_RELAY__LOG__LEVEL")), "{:?}", config.origins);
    let again = load(&printed, &[]).unwrap();
    assert_eq!((again.settings.clone(), again.effective()), (config.settings, printed.clone()));
    assert_eq!(printed.matches(" = ").count(), keys(&again.settings).len());
}

#[test]
fn check_output_differs_from_the_documented_file_only_in_settings() {
    let settings = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    let documented = settings(DOCUMENTED);
    let printed = settings(&with("sender.lifetime = '90s'\nshutdown.grace = '1s'").unwrap().effective());
    let differing: Vec<&String> = printed.iter().filter(|line| !documented.contains(line)).collect();
    assert_eq!(differing, ["region = \"eu-west-2\"", "lifetime = \"90s\"", "grace = \"1s\""]);
    assert_eq!(printed.len(), documented.len());
}

#[test]
fn a_ca_file_is_read_and_its_change_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let text = format!("sender.ca_file = '{}'", path.display());
    std::fs::write(&path, "not one").unwrap();
    assert!(with(&text).unwrap_err()[0].ends_with("must hold certificates in PEM"));
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let before = with(&text).unwrap();
    assert_eq!(before.participant().extra_roots, b"-----BEGIN CERTIFICATE-----\n");
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n").unwrap();
    assert_eq!(before.changes(&with(&text).unwrap()), ["sender.ca_file"]);
    assert!(before.changes(&before.clone()).is_empty());
}

/// A configuration with a fleet; its files are in `dir`.
#[cfg(feature = "fleet")]
fn with_fleet(dir: &Path, more: &str) -> Result<Config, Vec<String>> {
    let more = more.replace("{dir}", dir.to_str().unwrap());
    with(&format!("sender.connect_instance = 'shop'\nfleet.servers = ['nats://a', 'tls://me:hush@b:1']\n{more}"))
}

#[cfg(feature = "fleet")]
#[test]
fn a_fleet_is_its_servers_and_their_logins_are_never_printed() {
    let dir = tempfile::tempdir().unwrap();
    assert!(with("fleet.ca_file = '/nowhere'").unwrap().fleet().is_none(), "without servers no file is read");
    let config = with_fleet(dir.path(), "fleet.name = 'shops'").unwrap();
    let fleet = config.fleet().unwrap();
    let servers: Vec<_> = fleet.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["nats://a:4222", "tls://b:1"]);
    assert_eq!(fleet.servers[1].login, Some(fleet::Login::User("me".into(), Zeroizing::new("hush".into()))));
    let destination = "participant.connect.eu-west-2.amazonaws.com".into();
    assert_eq!(fleet.quota, Some(fleet::SharedQuota { connect_instance: "shop".into(), destination }));
    assert!(fleet.id.len() > 9, "{}", fleet.id);
    let printed = config.effective() + &format!("{config:?}{fleet:?}");
    assert!(printed.contains("servers = [\"nats://a\",\"tls://***@b:1\"]") && !printed.contains("hush"), "{printed}");
    let alone = with("fleet = {servers = 'nats://a', share_quota = false}").unwrap().fleet().unwrap();
    assert_eq!(alone.quota, None);
}

#[test]
fn relays_with_one_destination_write_it_alike() {
    let of = |endpoint: &str| {
        let config = load("", &[("CONNECT_RELAY__SENDER__ENDPOINT", endpoint)]).unwrap();
        destination(config.endpoint())
    };
    for same in ["https://vpce.example/a", "https://VPCE.example:443/a/"] {
        assert_eq!(of(same), "vpce.example/a", "{same}");
    }
    assert_eq!([of("https://vpce.example:8443"), of("http://127.0.0.1:80")], ["vpce.example:8443", "127.0.0.1"]);
}

#[cfg(feature = "fleet")]
#[test]
fn each_file_of_the_fleet_is_checked_and_its_change_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let certificate = "-----BEGIN CERTIFICATE-----\n";
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    for (name, text) in
        [("ca", certificate), ("cert", certificate), ("key", "-----BEGIN PRIVATE KEY-----\n"), ("nk", seed)]
    {
        write(name, text);
    }
    let servers = "fleet.servers = 'nats://a'\nsender.connect_instance = 'shop'\n";
    let files = "fleet.ca_file = '{dir}/ca'\nfleet.cert_file = '{dir}/cert'\nfleet.cert_key_file = '{dir}/key'\n\
                 fleet.credentials_file = '{dir}/nk'";
    let text = format!("{servers}{}", files.replace("{dir}", dir.path().to_str().unwrap()));
    let before = with(&text).unwrap();
    let fleet = before.fleet().unwrap();
    assert!(fleet.identity.is_some() && fleet.credentials.is_some() && fleet.extra_roots == certificate.as_bytes());
    for (name, key) in [("ca", "ca_file"), ("cert", "cert_file"), ("key", "cert_key_file")] {
        let path = dir.path().join(name);
        let old = std::fs::read_to_string(&path).unwrap();
        write(name, &format!("{old}{old}"));
        assert_eq!(before.changes(&with(&text).unwrap()), [format!("fleet.{key}")]);
        write(name, "s3cret");
        let found = with(&text).unwrap_err();
        assert!(found.len() == 1 && found[0].contains(&format!("fleet.{key} = ")), "{found:?}");
        assert!(found[0].contains("PEM") && !found[0].contains("s3cret"), "{found:?}");
        write(name, &old);
    }
    write("nk", "s3cret");
    let found = with(&text).unwrap_err();
    assert!(found[0].ends_with("nk: the NKey seed must be base32"), "{found:?}");
    let [one, other] = ["hush", "other"].map(|password| {
        with(&format!("sender.connect_instance = 'shop'\nfleet.servers = 'nats://me:{password}@a'")).unwrap()
    });
    assert_eq!(one.changes(&other), ["fleet.servers"], "a password counts");
}

#[cfg(not(feature = "fleet"))]
#[test]
fn servers_in_a_build_without_a_fleet_are_refused() {
    let found = with("fleet.servers = 'nats://me:hush@a'\nsender.connect_instance = 'shop'").unwrap_err();
    let expected = "{path}: fleet.servers = nats://***@a: must be empty: this build has no fleet (build it with the cargo \
                    feature `fleet`)";
    assert_eq!(found, [expected]);
    assert!(with("fleet.name = 'shops'").is_ok());
}

#[cfg(feature = "fleet")]
#[test]
fn keys_of_the_fleet_that_exclude_or_need_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let unnamed = with("fleet.servers = 'nats://a'").unwrap_err();
    let expected = "{path}: sender.connect_instance = \"\": must be set with fleet.share_quota: relays that name the same \
                    instance share its quota";
    assert_eq!(unnamed, [expected]);
    for (more, expected) in [
        ("fleet.cert_file = '/c'", "fleet.cert_key_file = \"\": must be set with fleet.cert_file"),
        ("fleet.cert_key_file = '/k'", "fleet.cert_file = \"\": must be set with fleet.cert_key_file"),
        (
            "fleet.credentials_file = '/c'",
            "fleet.credentials_file = /c: must be empty while a URL of fleet.servers has",
        ),
    ] {
        let found = with_fleet(dir.path(), more).unwrap_err();
        assert!(found.iter().any(|fault| fault.contains(expected)), "{more}: {found:#?}");
    }
}

#[cfg(feature = "fleet")]
#[test]
fn command_for_a_fleet_needs_the_servers_alone() {
    let load = |pairs: &[(&str, &str)]| {
        let environment = pairs.iter().map(|(key, value)| (format!("CONNECT_RELAY__{key}").into(), (*value).into()));
        Config::load_for_fleet(&Sources { file: None, environment: environment.collect(), dir: None })
    };
    let servers = ("FLEET__SERVERS", "nats://a:4222");
    assert!(load(&[servers]).unwrap().fleet().is_some());
    assert!(load(&[servers, ("FLEET__REPLICATE", "true")]).unwrap().fleet().is_some());
    assert!(load(&[]).unwrap().fleet().is_none());
    for (wrong, value) in [("FLEET__NAME", ""), ("QUEUE__KEY_FILE", "/nowhere"), ("FLEET__LEASE", "1s"), ("NONE", "x")]
    {
        assert!(load(&[servers, (wrong, value)]).is_err(), "{wrong}");
    }
}

#[test]
fn missing_file_is_reported_with_its_path() {
    let sources =
        Sources { file: Some("/nowhere/relay.toml".into()), environment: vec![region("eu-west-2")], dir: None };
    let Faults(found) = Config::load(&sources).unwrap_err();
    assert!(found.len() == 1 && found[0].starts_with("read /nowhere/relay.toml: No such file"), "{found:?}");
}

#[test]
fn a_copy_in_the_fleet_needs_an_identity_a_key_file_and_a_long_stream() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n").unwrap();
    let key_file = format!("[queue]\nkey_file = {:?}\n", keys.display().to_string());
    let base = "[fleet]\nservers = [\"nats://a\"]\nshare_quota = false\n";
    let fleet = |more: &str| format!("{base}replicate = true\n{more}\n");
    assert!(with(&format!("{}{key_file}", fleet("identity = \"bots-0\""))).unwrap().copy().is_some());
    assert!(with(&format!("{base}{key_file}")).unwrap().copy().is_none());
    assert!(with("[fleet]\nreplicate = true\n").unwrap().copy().is_none(), "without servers nothing is in use");
    let one = |text: &str| {
        let faults = with(text).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].clone()
    };
    for (more, expected) in [
        ("", "fleet.identity = \"\": must be set with fleet.replicate"),
        ("identity = \" \"", "fleet.identity = \" \": must be set with fleet.replicate"),
        (&format!("identity = \"{}\"", "x".repeat(201)), "must be at most 200 characters"),
        ("identity = \"a\"\nlease = \"9s\"", "fleet.lease = 9s: must be 10s to 1h"),
        ("identity = \"a\"\nack_timeout = \"0s\"", "fleet.ack_timeout = 0s: must be 100ms to 1m"),
        ("identity = \"a\"\nreplicas = 0", "fleet.replicas = 0: must be 1 to 5"),
        ("identity = \"a\"\nreplicas = 6", "fleet.replicas = 6: must be 1 to 5"),
        ("identity = \"a\"\nstream_bytes_max = \"511MiB\"", "must be at least 4 x queue.bytes_max, which is 512MiB"),
        ("identity = \"a\"\nwhen_down = \"stop\"", "must be \"go_on\" or \"refuse\""),
    ] {
        let fault = one(&format!("{}{key_file}", fleet(more)));
        assert!(fault.contains(expected), "{fault}");
    }
    let fault = one(&fleet("identity = \"a\""));
    assert!(fault.contains("queue.key_file = \"\": must be set with fleet.replicate"), "{fault}");
    let refusing = with(&format!("{}{key_file}", fleet("identity = \"a\"\nwhen_down = \"refuse\""))).unwrap();
    assert!(refusing.ingress().fleet_only && !refusing.copy().unwrap().go_on);
}

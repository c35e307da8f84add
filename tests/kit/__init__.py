"""The kit of the tests in Python: every suite imports it, and pytest loads `kit.plugin` for all of them.

| modules | contents |
| --- | --- |
| `plugin` | options, markers and fixtures |
| `processes` | the binary under test: a relay, the simulator, single commands; the only place that starts a relay |
| `bare` | a relay in a root folder with the image's files: no shell |
| `wait` | waiting for a condition |
| `upstream` | a scripted Participant Service |
| `callers`, `raw_http`, `other_users` | bots: curl and boto3, plain bytes, other users of the machine |
| `nats` | NATS servers, alone or as a cluster whose routes can be cut, and a listener on them |
| `copies`, `nats_proxy` | relays whose queue is copied to NATS servers, and a proxy that stops them at named instants or makes mutants of them |
| `outcomes` | a bot that reads the stream of its outcomes |
| `helpers` | bots with the helper files of `examples/`, in Python and in JavaScript |
| `cgroup` | memory limits |
| `bots`, `wire`, `audit`, `drained` | durability: the load, its protocol, the promises, relays that deliver everything |
| `disk`, `cuts`, `damage`, `mutants`, `clocks`, `old_stores` | durability: power cuts, damaged stores, clocks, kept stores |
| `browser` | a headless Chromium |
| `monitoring` | Prometheus and the load in front of it |
| `tools`, `helm_engine`, `containers` | deploy: the tools and containers that check `deploy/` |
"""

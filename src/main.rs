//! The `connect-relay` program: arguments in, exit code out. The library contains everything else.

fn main() -> std::process::ExitCode {
    connect_relay::cli::main()
}

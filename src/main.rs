//! The `connect-relay` program: arguments in, exit code out. All of it is in the library.

fn main() -> std::process::ExitCode {
    connect_relay::cli::main()
}

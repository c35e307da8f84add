# The relay as an image: one static binary, the certificate authorities, and no shell.
#
#   docker build -t connect-relay .
#   docker run --rm connect-relay demo

# Any Rust 1.95 or newer on a glibc with certificates will do.
ARG RUST=docker.io/library/rust:1.95.0-bookworm
# The tag is in the argument.
# hadolint ignore=DL3006
FROM ${RUST} AS build
# Writes the list of what the binary is made of into it, for `cargo audit bin` and the scanners of images.
RUN command -v cargo-auditable || cargo install --locked --debug cargo-auditable@0.7.7
WORKDIR /relay
COPY . .
# Static, so that it runs on nothing; by --target, so that the flag is for the relay and not for the macros it is built with.
# A static binary finds no getrandom() by name at run time and would need /dev/urandom: it is told to call it.
# The two caches keep the dependencies, built, from one build to the next; no image has them. The sources are touched because a
# checkout may be older than what the cache was built from.
# /image is the whole image; /owned are the folders that the relay writes where no volume lies over them.
RUN --mount=type=cache,target=/relay/target --mount=type=cache,target=/usr/local/cargo/registry \
    target="$(rustc --print host-tuple)" \
    && touch src/lib.rs src/main.rs \
    && RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' cargo auditable build --locked --profile dist --target "$target" \
    && install -D "target/$target/dist/connect-relay" /image/usr/bin/connect-relay \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -d -m 1777 /image/tmp \
    && install -d -m 755 /owned/run/connect-relay \
    && install -d -m 700 /owned/var/lib/connect-relay

FROM scratch
COPY --from=build /image /
COPY --from=build --chown=29581:29581 /owned /
# By PATH, so that `kubectl exec POD -c connect-relay -- connect-relay status` finds it.
ENV PATH=/usr/bin
USER 29581:29581
ENTRYPOINT ["/usr/bin/connect-relay"]
CMD ["run"]

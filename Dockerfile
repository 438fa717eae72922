# The image of Ferrite: server, client, the small model, the libraries that they link, and nothing
# else: no shell, no package manager. docs/operations.md says how it is checked without an engine.
#   docker build --tag ferrite:0.1.0 .                                for GPUs
#   docker build --tag ferrite:0.1.0-cpu --build-arg BACKEND=cpu .    without CUDA
# The *_DIGEST arguments (sha256:...) pin the base images. CUDA_ARCHITECTURES=90 compiles kernels for
# one chip only.
ARG BACKEND=cuda
ARG CUDA_IMAGE=docker.io/nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_DIGEST=
ARG UBUNTU_IMAGE=docker.io/library/ubuntu:24.04
ARG UBUNTU_DIGEST=
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-slim
ARG DEBIAN_DIGEST=

FROM ${CUDA_IMAGE}${CUDA_DIGEST:+@${CUDA_DIGEST}} AS build-cuda
FROM ${UBUNTU_IMAGE}${UBUNTU_DIGEST:+@${UBUNTU_DIGEST}} AS slim-cuda
FROM ${DEBIAN_IMAGE}${DEBIAN_DIGEST:+@${DEBIAN_DIGEST}} AS slim-cpu
FROM slim-cpu AS build-cpu

FROM build-${BACKEND} AS build
ARG BACKEND
ARG CUDA_ARCHITECTURES=
ARG JOBS=
WORKDIR /src
COPY scripts/setup.sh scripts/
RUN scripts/setup.sh
COPY . .
RUN cmake --preset "$BACKEND" -DFERRITE_BUILD_TESTS=OFF -DFERRITE_BUILD_BENCHMARKS=OFF \
      ${CUDA_ARCHITECTURES:+"-DCMAKE_CUDA_ARCHITECTURES=$CUDA_ARCHITECTURES"} \
 && cmake --build --preset "$BACKEND" --target ferrite-server ferrite \
      --parallel "${JOBS:-$(nproc)}" \
 && scripts/bundle.sh --preset "$BACKEND" --libraries cuda --out /opt/ferrite

# Where the distribution's libraries come from, as setup.sh --runtime installs them.
FROM slim-${BACKEND} AS collect
WORKDIR /src
COPY scripts/setup.sh scripts/image_root.sh scripts/
RUN scripts/setup.sh --runtime
COPY --from=build /opt/ferrite /opt/ferrite
RUN scripts/image_root.sh /opt/ferrite /image

FROM scratch AS runtime
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Ferrite" \
      org.opencontainers.image.description="gRPC inference server for decoder-only transformers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=collect /image /
# Which GPUs there are is left to the device plugin or to `docker run --gpus`.
ENV PATH=/opt/ferrite/bin NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/ferrite
USER 65532:65532
EXPOSE 50051 9400
ENTRYPOINT ["/opt/ferrite/bin/ferrite-server"]

# One image for every part of the platform. For the GPU: docker build --build-arg VARIANT=gpu .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ARG VARIANT=cpu
# Where torch's CPU build is kept; the one of the default index brings several GB of CUDA along.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/modelway
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY registry registry
COPY training training
COPY serving serving
COPY monitoring monitoring
COPY modelway modelway
RUN if [ "$VARIANT" = cpu ]; then set -- --extra-index-url "$TORCH_CPU_INDEX"; fi \
    && /opt/modelway/bin/pip install --no-cache-dir "$@" -c constraints.txt ".[${VARIANT},postgresql]"

FROM ${PYTHON_IMAGE}
# tini is the first process: it reaps what the engines leave behind, and passes signals on.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /var/lib/modelway --create-home --shell /usr/sbin/nologin modelway \
    && chmod 0700 /var/lib/modelway
COPY --from=builder /opt/modelway /opt/modelway
ENV PATH=/opt/modelway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MODELWAY_HOME=/var/lib/modelway \
    MODELWAY_GATEWAY_HOST=0.0.0.0
USER 10001
WORKDIR /var/lib/modelway
VOLUME /var/lib/modelway
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/v2/health/live', timeout=3)"]
ENTRYPOINT ["tini", "--", "modelway"]
CMD ["up"]

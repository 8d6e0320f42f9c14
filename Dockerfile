# One ConLoRA node. Configuration, identity and state lie in the volume; model and data come from outside.
#
#   docker build -t conlora .
#   docker build -t conlora --build-arg TORCH_INDEX=URL .     an additional index, such as one with CPU builds of PyTorch
#
#   docker run --rm -v mercy:/var/lib/conlora conlora init /var/lib/conlora --name mercy
#   docker run -d -p 7443:7443 -v mercy:/var/lib/conlora -v /srv/models:/srv/models:ro conlora

FROM debian:bookworm-slim AS build
ARG TORCH_INDEX=""
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/conlora
ENV PATH=/opt/conlora/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# PyTorch first, in a layer of its own: it is the largest by far and changes least.
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY node ./node
RUN pip install -c constraints.txt .

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="ConLoRA" \
      org.opencontainers.image.description="A node that fine-tunes a shared model with its peers: LoRA by gossip, no coordinator" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 7443 --user-group --no-create-home --home-dir /var/lib/conlora --shell /usr/sbin/nologin conlora \
 && install -d -o conlora -g conlora -m 0700 /var/lib/conlora
ENV PATH=/opt/conlora/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CONLORA_CONFIG=/var/lib/conlora/conlora.yaml \
    HF_HOME=/var/lib/conlora/huggingface
USER conlora
WORKDIR /var/lib/conlora
VOLUME /var/lib/conlora
EXPOSE 7443
STOPSIGNAL SIGTERM
# The daemon answers while it loads a model, trains, or waits.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["conlora", "status", "--json"]
ENTRYPOINT ["conlora"]
CMD ["run"]
COPY --from=build /opt/conlora /opt/conlora

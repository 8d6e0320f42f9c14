# One ConLoRA node. Configuration, identity and state lie in the volume; model and data come from outside.
#
#   docker build -t conlora .                                   PyTorch as the package index has it: PyPI's is built for CUDA
#   docker build -t conlora --build-arg TORCH=cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#                                                               ... without CUDA: much smaller, and not on PyPI
#        --build-arg EXTRAS=tensorboard,gguf,quantized          what the extras of these names bring, too
#
#   docker run --rm -v mercy:/var/lib/conlora conlora init /var/lib/conlora --name mercy
#   docker run -d -p 7443:7443 -v mercy:/var/lib/conlora -v /srv/models:/srv/models:ro --stop-timeout 60 \
#     --read-only --tmpfs /tmp conlora                          and --gpus all, where there are GPUs

# --- PyTorch, and what it needs: by far the largest layer, and the one that changes least ------------------------------
FROM debian:bookworm-slim AS torch
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
# pip stays behind in an environment of its own. The two that go into the image hold packages only, without tests and headers.
RUN python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/torch \
 && python3 -m venv --without-pip /opt/conlora \
 && echo /opt/torch/lib/python3.11/site-packages > /opt/conlora/lib/python3.11/site-packages/torch.pth
ENV PATH=/opt/pip/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
ARG TORCH=""
ARG TORCH_INDEX=""
RUN pip --python /opt/torch/bin/python install -c constraints.txt \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)${TORCH:++$TORCH}" \
 && find /opt/torch -depth -type d -name tests -exec rm -r {} + \
 && rm -r /opt/torch/lib/python3.11/site-packages/torch/include

# --- ConLoRA and all the rest ------------------------------------------------------------------------------------------
FROM torch AS build
COPY pyproject.toml README.md LICENSE ./
COPY node ./node
ARG EXTRAS=""
RUN pip --python /opt/conlora/bin/python install -c constraints.txt ".${EXTRAS:+[$EXTRAS]}" \
 && find /opt/conlora -depth -type d -name tests -exec rm -r {} + \
 && rm -r /opt/conlora/lib/python3.11/site-packages/pyarrow/include

# --- the image -----------------------------------------------------------------------------------------------------------
FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="ConLoRA" \
      org.opencontainers.image.description="A node that fine-tunes a shared model with its peers: LoRA by gossip, no coordinator" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# The volume may be written by whoever the container runs as (--user); what a node keeps in it is that user's alone.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 7443 --user-group --no-create-home --home-dir /var/lib/conlora --shell /usr/sbin/nologin conlora \
 && install -d -o conlora -g conlora -m 1777 /var/lib/conlora
COPY --from=torch /opt/torch /opt/torch
COPY --from=build /opt/conlora /opt/conlora
# Caches go to the volume, and where it is in use, to /tmp: the rest may be read-only.
ENV PATH=/opt/conlora/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/conlora \
    HF_HOME=/var/lib/conlora/huggingface \
    CONLORA_CONFIG=/var/lib/conlora/conlora.yaml
USER conlora
WORKDIR /var/lib/conlora
VOLUME /var/lib/conlora
EXPOSE 7443
STOPSIGNAL SIGTERM
# The daemon answers while it loads a model, trains, or waits.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["conlora", "status", "--json"]
# tini is process 1: it passes signals on, and reaps what a killed trainer leaves behind. Python that is told to stop before it
# can listen dies of that signal (143), and that is a good end, too.
ENTRYPOINT ["tini", "-e", "143", "--", "conlora"]
CMD ["run"]

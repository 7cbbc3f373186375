# syntax=docker/dockerfile:1
# A Docker Space with a GPU of its own, or any machine with an NVIDIA GPU: docs/deploy.md, "A GPU of its own".
#
# The versions are the ones in that page's table, with which gsplat's kernels have been built. They are compiled here,
# without a GPU, for the cards in GPUS: 7.5 T4, 8.0 A100, 8.6 A10G, 8.9 L4 and L40S, 9.0 H100 and H200, 12.0 RTX Pro 6000.
ARG GPUS=8.9

FROM python:3.11-slim-bookworm AS build
ARG GPUS
ARG MAX_JOBS=2
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Debian keeps only the newest of a release's versions:
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH SDLAB_CACHE=/opt/kernels TORCH_CUDA_ARCH_LIST=$GPUS MAX_JOBS=$MAX_JOBS
COPY requirements.txt /build/
RUN pip install --no-cache-dir -r /build/requirements.txt "torch==2.13.0" "gsplat==1.5.3"
COPY sdlab/ /build/sdlab/
WORKDIR /build
# torch's packages lack the compiler; it is needed here only
RUN pip install --no-cache-dir "nvidia-cuda-nvcc~=13.0.0" "nvidia-cuda-crt~=13.0.0" "nvidia-nvvm~=13.0.0" \
        "nvidia-cuda-cccl~=13.0.0" \
    && python -c "from sdlab.raster import gsplat_kernels as k; k.load()" \
    && find /opt/kernels -name "sdlab_gsplat*.so" | grep -q . \
    && pip uninstall -y nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm

FROM python:3.11-slim-bookworm
ARG GPUS
RUN useradd --create-home --uid 1000 user
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/user \
    SDLAB_CACHE=/home/user/.cache/sdlab \
    TORCH_CUDA_ARCH_LIST=$GPUS \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/user/app
COPY --from=build --chown=1000:1000 /opt/kernels /home/user/.cache/sdlab
COPY --chown=1000:1000 . .
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:7860/', timeout=8)"]
ENTRYPOINT ["python", "app.py", "--host", "0.0.0.0", "--port", "7860"]
# the weights of Stable Diffusion are downloaded at the start, about 3 GB
CMD ["--preset", "dreamfusion"]

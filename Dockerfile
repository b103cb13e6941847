# A GPU image. Build: docker build --tag narrowbert . ; run: docker run --gpus all narrowbert narrowbert --help
# Compilers are part of it, because DeepSpeed builds its fused operators at their first use.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        build-essential libopenmpi-dev ninja-build python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --shell /bin/bash narrowbert
RUN python3 -m venv /opt/narrowbert
ENV PATH=/opt/narrowbert/bin:$PATH

# torch first: it changes rarely and is most of the image.
RUN pip install --no-cache-dir 'torch>=2.10' --index-url https://download.pytorch.org/whl/cu128
COPY . /src
RUN pip install --no-cache-dir '/src[dedup,finetune,onnx,warc]'

USER narrowbert
WORKDIR /home/narrowbert
CMD ["narrowbert", "--help"]

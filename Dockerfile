# CPU image for every Ray node of a Trinity cluster: head, ranks and shards run the same one.
#   docker build -t trinity-serve .
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/trinity
ENV PATH=/opt/trinity/bin:$PATH
WORKDIR /src
# The pinned dependencies change seldom: a layer of their own. torch without the index below is a
# CUDA build of several GB.
COPY requirements.lock .
RUN pip install --no-cache-dir --disable-pip-version-check \
    --extra-index-url https://download.pytorch.org/whl/cpu --requirement requirements.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY cluster cluster
COPY experts experts
COPY router router
COPY trinity_serve trinity_serve
RUN pip install --no-cache-dir --disable-pip-version-check --no-build-isolation --no-deps .

FROM python:3.11-slim-bookworm
# wget: KubeRay's default probes call it.
RUN apt-get update \
    && apt-get install --no-install-recommends -y wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 trinity
COPY --from=build /opt/trinity /opt/trinity
ENV PATH=/opt/trinity/bin:$PATH
USER trinity
WORKDIR /home/trinity
COPY ray_config.yaml .
EXPOSE 6379 8265 10001 8000
CMD ["trinity", "check", "ray_config.yaml"]

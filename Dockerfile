# Serves the demo models, and trains on request. An address other than loopback wants a key:
#   docker build -t ganserve .
#   docker run -p 8000:8000 -e GANSERVE_API_KEY=$(openssl rand -hex 24) -v ganserve:/var/lib/ganserve ganserve
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/ganserve

# the lock alone first: a change of the code installs nothing again
COPY requirements.lock ./
RUN pip install --require-hashes --requirement requirements.lock

COPY pyproject.toml README.md LICENSE NOTICE ./
COPY app app
COPY training training
COPY ganserve ganserve
COPY models models
RUN pip install --no-deps --no-build-isolation --editable . \
    && useradd --system --home-dir /var/lib/ganserve --create-home ganserve

USER ganserve
# what is trained goes to the volume; the models of the image are only read
ENV GANSERVE_MODELS=/var/lib/ganserve/models:/opt/ganserve/models \
    GANSERVE_STATE=/var/lib/ganserve/state \
    GANSERVE_HOST=0.0.0.0 \
    GANSERVE_PORT=8000
VOLUME /var/lib/ganserve
WORKDIR /var/lib/ganserve
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["ganserve"]
CMD ["serve"]

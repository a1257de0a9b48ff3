# Two images:   docker build --target api .       API and dashboard, free of torch
#               docker build --target worker .    runs the jobs
#
# What changes least comes first: a change of source installs no package again.

# The project itself, as a wheel -------------------------------------------------------------------------------------
FROM python:3.11-slim-bookworm AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api ./api
COPY worker ./worker
COPY elder_core ./elder_core
COPY elder_service ./elder_service
COPY elder_client ./elder_client
COPY migrations ./migrations
RUN pip wheel --no-deps --wheel-dir dist .

# What both images have ----------------------------------------------------------------------------------------------
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --uid 10001 --create-home elder \
    && mkdir -p /data /models /hub \
    && chown elder:elder /data /models /hub
WORKDIR /app
COPY pyproject.toml constraints.txt ./
COPY scripts/requirements ./scripts/requirements
RUN python scripts/requirements > base.txt \
    && pip install -c constraints.txt -r base.txt
COPY examples/models/manuals-16l /builtin/manuals-16l
COPY examples/models/manuals-texts /builtin/manuals-texts
ENV ELDER_ENVIRONMENT=production ELDER_DATA_DIR=/data ELDER_BUILTIN_ROOT=/builtin \
    ELDER_MODEL_ROOTS=/models ELDER_TEXT_ROOTS=/models ELDER_HUB_CACHE=/hub

# API and dashboard --------------------------------------------------------------------------------------------------
FROM base AS api
COPY --from=wheel /src/dist ./dist
RUN pip install --no-deps dist/*.whl
USER 10001
EXPOSE 8321
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8321/livez', timeout=4)"]
CMD ["elder-server", "api", "--host", "0.0.0.0", "--port", "8321"]

# Worker -------------------------------------------------------------------------------------------------------------
FROM base AS worker
# On PyPI, torch 2.13.0 for Linux is the CUDA build and brings NVIDIA's libraries. For a machine without GPU, and an
# image smaller by gigabytes, offer the CPU build beside it, which pip then prefers for the same pin:
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL
RUN python scripts/requirements worker > worker.txt \
    && pip install -c constraints.txt -r worker.txt
COPY --from=wheel /src/dist ./dist
RUN pip install --no-deps dist/*.whl
USER 10001
# Importing the worker takes a while on a busy machine.
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s CMD ["elder-server", "health"]
CMD ["elder-server", "worker"]

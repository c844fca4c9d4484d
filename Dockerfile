ARG PYTHON=3.13

FROM python:${PYTHON}-slim-trixie AS build
# "train" adds torch, for the neural recommenders: docker build --build-arg EXTRAS=train .
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /venv
WORKDIR /build
COPY requirements/constraints.txt requirements/
COPY pyproject.toml README.md LICENSE ./
COPY demo/movietweetings-100k/LICENSE demo/movietweetings-100k/
# The dependencies in a layer of their own: a change of code does not download them again.
RUN /venv/bin/pip install -c requirements/constraints.txt ".${EXTRAS:+[$EXTRAS]}" && /venv/bin/pip uninstall -y segue
COPY demo demo
COPY migrations migrations
COPY models models
COPY app app
RUN /venv/bin/pip install --no-deps .

FROM python:${PYTHON}-slim-trixie
# OpenMP, which implicit's wheel expects of the system.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 segue \
    && useradd --uid 10001 --gid segue --no-create-home --home-dir /data segue \
    && install -d -o segue -g segue /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SEGUE_DATA_DIR=/data
WORKDIR /data
USER segue
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["segue"]
# Refused without an API key, as the address is not loopback: set SEGUE_ADMIN_KEY.
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

FROM python:3.12.11-slim-bookworm

ENV PYTHONUNBUFFERED=1

# Numbers, so that a volume keeps its owner from one image to the next and a host can check that it is not root.
RUN groupadd --gid 10001 webai \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin webai \
    && install --directory --owner=10001 --group=10001 /data

WORKDIR /srv/webai-api

# Dependencies change less often than the code, so they are a layer of their own.
COPY requirements/run.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/run.txt

COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# Where a relative path of SESSION_STORE or a .env file is looked for; mount a volume here to keep an SQLite store.
WORKDIR /data
USER 10001:10001

EXPOSE 6969

# Whether the process serves, whatever the store does: restarting it would not bring a store back.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import sys, http.client as h; c = h.HTTPConnection('127.0.0.1', 6969, timeout=2); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]

CMD ["webai-api", "serve", "--host", "0.0.0.0", "--port", "6969"]

# docker build -t mfg-notify .
# The last stage has Python, the package with what it depends on, and one user without rights. It writes nothing, so its
# root may be read-only.

# A release gives the digest, too, and labels the image with source and revision: make release writes the commands.
ARG PYTHON=python:3.13.7-slim-trixie

FROM ${PYTHON} AS build
WORKDIR /build
COPY requirements requirements
# Without pip of its own, the environment holds what runs and no more. The wheel is built by what build.txt locks.
RUN python -m venv --without-pip /opt/mfg-notify \
    && pip --python /opt/mfg-notify/bin/python install --no-cache-dir -r requirements/run.txt \
    && pip install --no-cache-dir -r requirements/build.txt
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/mfg-notify/bin/python install --no-deps --no-index dist/*.whl

FROM ${PYTHON}
LABEL org.opencontainers.image.title="mfg-notify" \
      org.opencontainers.image.description="Exact Prometheus metrics of a SpaceTraders bot's manufacturing" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.1.0"
# With a name, because libpq asks for it.
RUN useradd --system --uid 65532 --user-group --no-create-home --shell /usr/sbin/nologin exporter
COPY --from=build /opt/mfg-notify /opt/mfg-notify
ENV PATH=/opt/mfg-notify/bin:$PATH \
    MFG_NOTIFY_WEB_LISTEN_ADDRESS=0.0.0.0:9810
USER 65532:65532
EXPOSE 9810
# Healthy, not ready: an exporter whose database is away recovers by itself, and to restart it would help nobody.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 9810, timeout=2); c.request('GET', '/-/healthy'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["mfg-notify"]
CMD ["run"]

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY dexcom2mqtt dexcom2mqtt
# There are wheels of all dependencies for amd64, arm64 and armv7, so no compiler is needed. pip is not needed later.
RUN python -m venv /opt/dexcom2mqtt \
    && /opt/dexcom2mqtt/bin/pip install --no-cache-dir . \
    && /opt/dexcom2mqtt/bin/pip uninstall --yes pip

FROM python:3.13-slim
LABEL org.opencontainers.image.title="dexcom2mqtt" \
      org.opencontainers.image.description="Bring continuous glucose readings home: from Dexcom Share to MQTT" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.authors="the dexcom2mqtt contributors" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim"
COPY --from=build /opt/dexcom2mqtt /opt/dexcom2mqtt
ENV PATH="/opt/dexcom2mqtt/bin:$PATH"
USER 65532:65532
# The page, if it is switched on: DEXCOM2MQTT_WEB__HOST=0.0.0.0
EXPOSE 8017
STOPSIGNAL SIGTERM
# Python starts slowly on a small machine. The daemon itself has to answer within 5 s.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 CMD ["dexcom2mqtt", "healthcheck"]
ENTRYPOINT ["dexcom2mqtt"]
CMD ["run"]

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY dexcom2mqtt dexcom2mqtt
RUN python -m venv /opt/dexcom2mqtt \
    && /opt/dexcom2mqtt/bin/pip install --no-cache-dir .

FROM python:3.13-slim
COPY --from=build /opt/dexcom2mqtt /opt/dexcom2mqtt
USER 65532:65532
STOPSIGNAL SIGTERM
# Python needs a while to start on a small machine; the daemon itself has to answer within 5 s.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["/opt/dexcom2mqtt/bin/dexcom2mqtt", "healthcheck"]
ENTRYPOINT ["/opt/dexcom2mqtt/bin/dexcom2mqtt"]
CMD ["run"]

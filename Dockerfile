# docker build -t sharedmask .   (docs/containers.md says how it is run)
FROM python:3.13-slim AS build
# The tag of a release, which a folder without git does not tell: --build-arg SETUPTOOLS_SCM_PRETEND_VERSION=1.2.0
ARG SETUPTOOLS_SCM_PRETEND_VERSION
WORKDIR /src
COPY . .
RUN python -m venv /opt/sharedmask
RUN /opt/sharedmask/bin/python -m pip install --no-cache-dir .

FROM python:3.13-slim
RUN useradd --create-home --uid 1000 sharedmask
COPY --from=build /opt/sharedmask /opt/sharedmask
ENV PATH=/opt/sharedmask/bin:/usr/local/bin:/usr/bin:/bin \
    TEMPLATEFLOW_HOME=/templateflow \
    MPLCONFIGDIR=/tmp/matplotlib
USER sharedmask
WORKDIR /home/sharedmask
ENTRYPOINT ["sharedmask-bids"]

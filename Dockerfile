# docker build -t hanok . && docker run -p 8008:8008 -p 8448:8448 -v hanok:/data hanok
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /hanok ./cmd/hanok && mkdir /data

# Nothing but the binary, certificate authorities and time zones; no shell, no root.
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /hanok /hanok
COPY --from=build --chown=nonroot:nonroot /data /data
VOLUME /data
EXPOSE 8008 8448
ENTRYPOINT ["/hanok"]
# Makes what is missing in /data on first start. For a real domain add: --name example.org
CMD ["quickstart", "--dir", "/data", "--ip", "0.0.0.0"]

#!/bin/bash
# As the official image: KAFKA_… variables to server.properties, a format at the first start, the broker.
set -e
java=(/opt/java/bin/java -cp '/opt/kafka/libs/*' -Dlogback.configurationFile=/logback.xml)
export CLUSTER_ID="${CLUSTER_ID:-5L6g3nShT-eMCtK--X86sw}"
said=$("${java[@]}" kafka.docker.KafkaDockerWrapper setup --default-configs-dir /etc/kafka/docker \
    --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config 2>&1) ||
    grep -qi "already formatted" <<< "$said" || { echo "$said" >&2; exit 1; }
exec "${java[@]}" -Xmx1G kafka.Kafka /opt/kafka/config/server.properties

#!/bin/bash
# Honours the variables of the official image that docker-compose.yml sets.
set -e
address=$(hostname -i)
cat > /etc/cassandra/cassandra.yaml <<YAML
cluster_name: ${CASSANDRA_CLUSTER_NAME:-Test Cluster}
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
num_tokens: 16
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{seeds: "$address"}]
listen_address: $address
rpc_address: 0.0.0.0
broadcast_rpc_address: $address
start_native_transport: true
commitlog_sync: periodic
commitlog_sync_period: 10000ms
YAML
exec /opt/java/bin/java @/cassandra-jvm.options -Xmx"${MAX_HEAP_SIZE:-1G}" -Xmn"${HEAP_NEWSIZE:-200M}" \
    -cp '/opt/cassandra/lib/*' -javaagent:"$(echo /opt/cassandra/lib/jamm-*.jar)" -Dlogback.configurationFile=/logback.xml \
    -Dcassandra.config=file:///etc/cassandra/cassandra.yaml -Dcassandra.storagedir=/var/lib/cassandra \
    -Dcassandra-foreground=yes org.apache.cassandra.service.CassandraDaemon

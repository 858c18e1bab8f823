"""What a request is: its life, what it adds up to, what is due. Pure: no bytes, no Kafka, no Cassandra, no clock."""

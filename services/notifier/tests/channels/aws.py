"""Talks to moto's server as a user of Amazon's services would: aws.py URL WHAT [NAME]. The calls are signed."""

import json
import sys

import boto3

url, what, *names = sys.argv[1:]


def client(service):
    return boto3.client(
        service,
        endpoint_url=url,
        region_name="eu-central-1",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="hush",
    )


def make():
    sqs = client("sqs")
    fifo = sqs.create_queue(QueueName="events.fifo", Attributes={"FifoQueue": "true"})
    plain = sqs.create_queue(QueueName="events")
    client("kinesis").create_stream(StreamName="events", ShardCount=1)
    where = {"LocationConstraint": "eu-central-1"}
    client("s3").create_bucket(Bucket="events", CreateBucketConfiguration=where)
    return {"fifo": fifo["QueueUrl"], "plain": plain["QueueUrl"]}


def queue():
    wanted = {"MessageAttributeNames": ["All"], "MessageSystemAttributeNames": ["All"], "MaxNumberOfMessages": 10}
    return client("sqs").receive_message(QueueUrl=names[0], **wanted).get("Messages", [])


def stream():
    kinesis = client("kinesis")
    shard = kinesis.list_shards(StreamName="events")["Shards"][0]["ShardId"]
    start = kinesis.get_shard_iterator(StreamName="events", ShardId=shard, ShardIteratorType="TRIM_HORIZON")
    records = kinesis.get_records(ShardIterator=start["ShardIterator"])["Records"]
    return [{"key": record["PartitionKey"], "data": record["Data"].decode()} for record in records]


def bucket():
    s3 = client("s3")
    found = []
    for item in s3.list_objects_v2(Bucket="events").get("Contents", []):
        read = s3.get_object(Bucket="events", Key=item["Key"])
        found.append({"key": item["Key"], "type": read["ContentType"], "body": read["Body"].read().decode()})
    return found


print(json.dumps({"make": make, "queue": queue, "stream": stream, "bucket": bucket}[what]()))

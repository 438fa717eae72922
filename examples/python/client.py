#!/usr/bin/env python3
"""What a Python program needs of Ferrite: one function for each task.

    client.py [--server HOST:PORT] generate|stream|embed|cancel|deadline|retry [TEXT]
"""
import argparse
import random
import sys
import time

import grpc

from stubs import error_details, inference, inference_grpc, status


def request_for(text, max_new_tokens=64, temperature=0.0):
    return inference.GenerateRequest(
        text=text,
        sampling=inference.SamplingParams(temperature=temperature),
        stopping=inference.StoppingParams(max_new_tokens=max_new_tokens),
    )


def generate(channel, text):
    """One call, one answer."""
    response = inference_grpc.InferenceStub(channel).Generate(request_for(text), timeout=60)
    print(response.choices[0].text)
    print(
        f"{response.usage.prompt_tokens} prompt tokens, "
        f"{response.usage.completion_tokens} completion tokens, "
        f"{inference.FinishReason.Name(response.choices[0].finish_reason)}",
        file=sys.stderr,
    )


def stream(channel, text):
    """The text as it comes: `started`, `delta`s, `finished`."""
    for message in inference_grpc.InferenceStub(channel).GenerateStream(request_for(text)):
        event = message.WhichOneof("event")
        if event == "started":
            print(f"request {message.started.request_id}", file=sys.stderr)
            continue
        for choice in getattr(message, event).choices:  # the last of the text is in `finished`
            print(choice.text, end="", flush=True)
        if event == "finished":
            print()
            print(f"{message.finished.timings.total_seconds:.3f} s", file=sys.stderr)


def embed(channel, text):
    """Vectors of several texts with one call, and how alike the texts are."""
    texts = [text, text + "!", "Something else altogether."]
    request = inference.EmbedRequest(
        inputs=[inference.EmbedInput(text=each) for each in texts],
        pooling=inference.POOLING_MEAN,
        normalize=True,
    )
    response = inference_grpc.InferenceStub(channel).Embed(request, timeout=60)
    vectors = [embedding.values for embedding in response.embeddings]
    for each, vector in zip(texts, vectors):
        cosine = sum(a * b for a, b in zip(vectors[0], vector))
        print(f"{len(vector)} values, cosine {cosine:.4f}: {each}")


def cancel(channel, text):
    """Leaving a stream frees what it holds on the server, at once."""
    call = inference_grpc.InferenceStub(channel).GenerateStream(request_for(text, 400))
    try:
        for message in call:
            if message.WhichOneof("event") == "delta":
                call.cancel()
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.CANCELLED:
            raise
    print(call.code().name)
    # Another client could end it by its id: Control.Abort(AbortRequest(request_id=...)). Then the
    # stream ends with FINISH_REASON_ABORTED.


def deadline(channel, text):
    """A request whose time is over ends everywhere, in the queue too."""
    try:
        inference_grpc.InferenceStub(channel).Generate(request_for(text, 400), timeout=0.002)
        print("OK")
    except grpc.RpcError as error:
        print(error.code().name)


def retry_delay(error):
    """After how many seconds the server wants to be asked again; None if it never does.

    RESOURCE_EXHAUSTED without advice is gRPC's own: the message is too large.
    """
    trailers = dict(error.trailing_metadata() or ())
    if "grpc-status-details-bin" in trailers:
        details = status.Status.FromString(trailers["grpc-status-details-bin"])
        for detail in details.details:
            retry_info = error_details.RetryInfo()
            if detail.Unpack(retry_info):
                return retry_info.retry_delay.ToNanoseconds() / 1e9
    if "grpc-retry-pushback-ms" in trailers:
        return int(trailers["grpc-retry-pushback-ms"]) / 1e3
    return None


def with_retry(call, attempts=6):
    """Calls until it is served; the server's advice counts, and otherwise growing pauses.

    A request may be sent again as it is after these statuses: nothing of it was served.
    """
    for attempt in range(attempts):
        try:
            return call()
        except grpc.RpcError as error:
            pause = None
            if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                pause = retry_delay(error)
            elif error.code() == grpc.StatusCode.UNAVAILABLE:
                pause = retry_delay(error) or 0.1 * 2**attempt
            if pause is None or attempt == attempts - 1:
                raise
            pause *= random.uniform(1.0, 1.5)  # so that all who were refused do not come together
            print(f"{error.code().name}; again in {pause:.3f} s", file=sys.stderr)
            time.sleep(pause)


def retry(channel, text):
    stub = inference_grpc.InferenceStub(channel)
    response = with_retry(lambda: stub.Generate(request_for(text), timeout=60))
    print(response.choices[0].text)


TASKS = {task.__name__: task for task in (generate, stream, embed, cancel, deadline, retry)}


def main():
    parser = argparse.ArgumentParser(description="Talks to a Ferrite server.")
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("text", nargs="?", default="Once upon a time")
    arguments = parser.parse_args()
    # No proxy of the environment's, and no bound on the answer that the server does not set.
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(arguments.server, options=options) as channel:
        try:
            TASKS[arguments.task](channel, arguments.text)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()

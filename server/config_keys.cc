#include "server/config_keys.h"

#include <charconv>

namespace ferrite {
namespace {

// host:port, [ipv6]:port or unix:path.
bool IsListenAddress(std::string_view value) {
  if (value.starts_with("unix:")) return value.size() > 5;
  const size_t colon = value.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  const std::string_view host = value.substr(0, colon);
  const std::string_view port = value.substr(colon + 1);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (!bracketed && host.find_first_of(":/[] ") != std::string_view::npos) return false;
  int number = -1;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  return error == std::errc() && end == port.data() + port.size() && number >= 0 && number <= 65535;
}

bool IsMetricsAddress(std::string_view value) {
  return value.empty() || (!value.starts_with("unix:") && IsListenAddress(value));
}

bool IsNotEmpty(std::string_view value) { return !value.empty(); }

// Three octal digits, behind a 0 or not.
bool IsFileMode(std::string_view value) {
  if (value.size() == 4 && value.front() == '0') value.remove_prefix(1);
  return value.size() == 3 && value.find_first_not_of("01234567") == std::string_view::npos;
}

constexpr double kDay = 86400;

#define FIELD(member) [](ServerConfig& c) -> ConfigField { return &c.member; }

constexpr ConfigKey kKeys[] = {
    {.name = "server.listen",
     .field = FIELD(server.listen),
     .help = "Where to listen. Port 0 takes any free port, which the log then names.",
     .form = "host:port or unix:path",
     .has_form = IsListenAddress},
    {.name = "server.max_message_bytes",
     .field = FIELD(server.max_message_bytes),
     .help = "The largest request or response, in bytes.",
     .min = 1024,
     .max = 1 << 30},
    {.name = "server.reflection",
     .field = FIELD(server.reflection),
     .help = "Whether clients may ask for the services and their messages (gRPC reflection). Needs "
             "no token, like health checks."},
    {.name = "server.drain_grace_seconds",
     .field = FIELD(server.drain_grace_seconds),
     .help = "On SIGTERM: how long to report NOT_SERVING and still accept requests, so that load "
             "balancers can look elsewhere.",
     .max = kDay},
    {.name = "server.drain_timeout_seconds",
     .field = FIELD(server.drain_timeout_seconds),
     .help = "After the grace: how long the requests in flight may take before they are cancelled.",
     .max = kDay},
    {.name = "server.stuck_step_seconds",
     .field = FIELD(server.stuck_step_seconds),
     .help =
         "A step that makes no progress for this long turns liveness, so that the server is "
         "restarted; its worker gets no new requests. Above the longest step that a busy worker "
         "can take.",
     .min = 1,
     .max = kDay},
    {.name = "server.stuck_grace_seconds",
     .field = FIELD(server.stuck_grace_seconds),
     .help = "How long after that the step may still end before the requests of its worker fail "
             "with INTERNAL. In a drain they fail without it.",
     .max = kDay},
    {.name = "server.slow_reader_seconds",
     .field = FIELD(server.slow_reader_seconds),
     .help = "A client that leaves one message unread for this long loses its call, which is "
             "cancelled. 0: never.",
     .max = kDay},
    {.name = "server.unix_socket_mode",
     .field = FIELD(server.unix_socket_mode),
     .help =
         "Who may connect to a Unix socket: its permission bits, in octal. 0660 lets the group.",
     .form = "three octal digits like 0660",
     .has_form = IsFileMode},
    {.name = "server.orca",
     .field = FIELD(server.orca),
     .help = "Whether every answer of Generate and GenerateStream ends with the load (ORCA's "
             "endpoint-load-metrics-bin), or only where the client asks by the metadata "
             "endpoint-load-metrics-format: bin."},

    {.name = "connections.keepalive_seconds",
     .field = FIELD(connections.keepalive_seconds),
     .help = "A connection that is silent for this long is pinged, so that a client that is gone "
             "is noticed. 0: never.",
     .max = kDay},
    {.name = "connections.keepalive_timeout_seconds",
     .field = FIELD(connections.keepalive_timeout_seconds),
     .help = "How long the answer to that ping may take before the connection is closed and its "
             "calls are cancelled.",
     .max = kDay,
     .above_min = true},
    {.name = "connections.min_ping_seconds",
     .field = FIELD(connections.min_ping_seconds),
     .help = "The shortest time between two pings of a client. One that keeps pinging more often "
             "is disconnected.",
     .max = kDay},
    {.name = "connections.max_idle_seconds",
     .field = FIELD(connections.max_idle_seconds),
     .help = "A connection without calls is closed after this long. 0: never.",
     .max = kDay},
    {.name = "connections.max_age_seconds",
     .field = FIELD(connections.max_age_seconds),
     .help = "A connection takes no new calls once it is this old, give or take a tenth: its "
             "client connects anew, perhaps to another replica. 0: never.",
     .max = kDay},
    {.name = "connections.max_age_grace_seconds",
     .field = FIELD(connections.max_age_grace_seconds),
     .help = "How long the calls of such a connection may go on before they are cancelled. 0: to "
             "their end.",
     .max = kDay},
    {.name = "connections.max_streams",
     .field = FIELD(connections.max_streams),
     .help = "Calls in flight on one connection; a client holds back those above. 0: any number."},

    {.name = "tls.certificate",
     .field = FIELD(tls.certificate),
     .help = "PEM file with the server's certificate, then those between it and its CA. Empty: no "
             "TLS. The files of this section are read again while the server runs.",
     .form = "a path"},
    {.name = "tls.key",
     .field = FIELD(tls.key),
     .help = "PEM file with the certificate's private key, without a passphrase.",
     .form = "a path"},
    {.name = "tls.client_ca",
     .field = FIELD(tls.client_ca),
     .help = "PEM file with the certificates that client certificates must be signed by (mTLS).",
     .form = "a path"},
    {.name = "tls.client_certificates",
     .field = FIELD(tls.client_certificates),
     .help = "Whether clients must show a certificate, or only show a good one if they show one. "
             "Both need tls.client_ca.",
     .choices = "none|optional|required"},
    {.name = "tls.reload_seconds",
     .field = FIELD(tls.reload_seconds),
     .help = "How often to look whether the files have changed. New connections get the new ones; "
             "wrong ones are logged, and the old ones stay.",
     .max = kDay,
     .above_min = true},

    {.name = "auth.token_file",
     .field = FIELD(auth.token_file),
     .help = "File with a line `name:sha256` for each bearer token, as `ferrite token` prints it. "
             "Empty: no token is needed.",
     .form = "a path"},
    {.name = "auth.reload_seconds",
     .field = FIELD(auth.reload_seconds),
     .help = "How often to look whether the file has changed. A wrong one is logged, and the old "
             "tokens stay.",
     .max = kDay,
     .above_min = true},

    {.name = "limits.max_prompt_tokens",
     .field = FIELD(limits.max_prompt_tokens),
     .help = "The longest prompt; a longer one is refused with INVALID_ARGUMENT. 0: what the "
             "context allows."},
    {.name = "limits.max_new_tokens",
     .field = FIELD(limits.max_new_tokens),
     .help = "The most tokens that a request may ask for; one that asks for more is refused with "
             "INVALID_ARGUMENT. 0: what the context allows."},
    {.name = "limits.max_requests_per_client",
     .field = FIELD(limits.max_requests_per_client),
     .help =
         "Requests in flight of one client: of a token that has no max_requests of its own, "
         "or without tokens of a client certificate's subject, or else of an address. Each sample "
         "of a Generate and each input of an Embed is one. What would make them more is refused "
         "with RESOURCE_EXHAUSTED, and with INVALID_ARGUMENT if it has more by itself. 0: any "
         "number."},

    {.name = "model.path",
     .field = FIELD(model.path),
     .help = "The model's folder in Hugging Face layout, relative to the working directory.",
     .form = "a path",
     .has_form = IsNotEmpty},
    {.name = "model.name",
     .field = FIELD(model.name),
     .help = "The name that clients see and may ask for. Empty: the last folder name of the path."},

    {.name = "backend.type",
     .field = FIELD(backend.type),
     .help = "What computes.",
     .choices = "cpu|cuda"},
    {.name = "backend.compute_type",
     .field = FIELD(backend.compute_type),
     .help =
         "The precision of the weights and the KV cache. auto: bf16 for a model whose weights are "
         "bf16, else fp32 on a CPU and fp16 on a GPU. fp32 is the CPU's alone, fp16 the GPU's.",
     .choices = "auto|fp32|bf16|fp16"},
    {.name = "backend.threads",
     .field = FIELD(backend.threads),
     .help = "Threads of the CPU backend. 0: all cores.",
     .max = 1024},
    {.name = "backend.gpu_memory_fraction",
     .field = FIELD(backend.gpu_memory_fraction),
     .help = "How much of a GPU's memory may be in use once the KV cache has taken the rest.",
     .max = 1,
     .above_min = true},
    {.name = "backend.deterministic",
     .field = FIELD(backend.deterministic),
     .help = "Whether the same request gets the same answer in every bit, whatever else is served "
             "at the time. Costs speed on a GPU (docs/determinism.md)."},

    {.name = "workers",
     .field = FIELD(workers),
     .help = "The replicas of the model, each with the devices that it runs on. Device 0 is the "
             "only one of the cpu backend; a worker of the cuda backend has one GPU to itself."},

    {.name = "scheduler.max_running",
     .field = FIELD(scheduler.max_running),
     .help = "Sequences that one worker runs at a time.",
     .min = 1,
     .max = 4096},
    {.name = "scheduler.max_step_tokens",
     .field = FIELD(scheduler.max_step_tokens),
     .help = "Tokens in one step of a worker, decoding and prompts together. Not less than "
             "max_running.",
     .min = 1,
     .max = 65536},
    {.name = "scheduler.mixed_step_tokens",
     .field = FIELD(scheduler.mixed_step_tokens),
     .help = "Tokens in a step in which some sequences decode and others compute their prompts: "
             "how long prompts hold up the tokens of others. Three for each that decodes if that "
             "is more; never above max_step_tokens. 0: what suits the backend, 256, or 128 for "
             "4-bit weights on a GPU.",
     .max = 65536},
    {.name = "scheduler.max_context",
     .field = FIELD(scheduler.max_context),
     .help = "Tokens that a prompt and its output may have together. 0: what the model allows.",
     .max = 1 << 24},
    {.name = "scheduler.max_waiting",
     .field = FIELD(scheduler.max_waiting),
     .help = "Requests that may wait for one worker. One more is refused with RESOURCE_EXHAUSTED.",
     .min = 1,
     .max = 1e6},
    {.name = "scheduler.max_waiting_tokens",
     .field = FIELD(scheduler.max_waiting_tokens),
     .help = "Prompt tokens that may wait for one worker. A request above that is refused.",
     .min = 1,
     .max = 1e12},
    {.name = "scheduler.refuse_late",
     .field = FIELD(scheduler.refuse_late),
     .help = "Whether a request that cannot meet its deadline at the present rate is refused at "
             "once, with RESOURCE_EXHAUSTED, rather than cancelled when the deadline comes."},
    {.name = "scheduler.aging_seconds",
     .field = FIELD(scheduler.aging_seconds),
     .help =
         "What a level of a request's priority is worth in waiting: a request that has waited so "
         "long goes before those that come with a priority one higher.",
     .max = kDay,
     .above_min = true},

    {.name = "kv_cache.block_size",
     .field = FIELD(kv_cache.block_size),
     .help = "Tokens in one block of a worker's KV cache.",
     .min = 1,
     .max = 256},
    // The most blocks whose slots an int32 can number at the largest block size.
    {.name = "kv_cache.blocks",
     .field = FIELD(kv_cache.blocks),
     .help = "Blocks of a worker's KV cache. 0: as many as memory_mb holds, or on a GPU as many as "
             "fit and can be used.",
     .max = 8388607},
    {.name = "kv_cache.memory_mb",
     .field = FIELD(kv_cache.memory_mb),
     .help = "MiB for the KV cache of a worker on the CPU. Not looked at if blocks is given.",
     .min = 1,
     .max = 1 << 24},
    {.name = "kv_cache.prefix_caching",
     .field = FIELD(kv_cache.prefix_caching),
     .help =
         "Whether free blocks keep what they hold until they are needed, so that a request whose "
         "prompt begins like an earlier one's need not compute that again."},

    {.name = "defaults.temperature",
     .field = FIELD(defaults.temperature),
     .help = "Taken, like the rest of this section, when neither the request nor the model's "
             "generation_config.json says. 0 is greedy.",
     .max = 100},
    {.name = "defaults.top_k",
     .field = FIELD(defaults.top_k),
     .help = "How many of the likeliest tokens stay. 0: all."},
    {.name = "defaults.top_p",
     .field = FIELD(defaults.top_p),
     .help = "The probability that the tokens that stay must reach together. 1: all stay.",
     .max = 1,
     .above_min = true},
    {.name = "defaults.min_p",
     .field = FIELD(defaults.min_p),
     .help = "The least probability that stays, relative to the likeliest token's. 0: all stay.",
     .max = 1},
    {.name = "defaults.max_new_tokens",
     .field = FIELD(defaults.max_new_tokens),
     .help = "Tokens to generate at most. 0: what the context has left."},

    {.name = "metrics.listen",
     .field = FIELD(metrics.listen),
     .help =
         "Where Prometheus finds /metrics, over plain HTTP and without a token: 0.0.0.0:9400 for "
         "other machines. Port 0 takes any free port, which the log then names. Empty: nowhere.",
     .form = "host:port or nothing",
     .has_form = IsMetricsAddress},

    {.name = "log.format",
     .field = FIELD(log.format),
     .help = "One line an event, on stderr.",
     .choices = "text|json"},
    {.name = "log.level",
     .field = FIELD(log.level),
     .help = "The least severe level that is written.",
     .choices = "debug|info|warning|error"},
    {.name = "log.access",
     .field = FIELD(log.access),
     .help =
         "Whether each request writes a line when it ends, at level info (Tokenize and the like "
         "at level debug): ids, token counts, times, status; nothing of what it says."},
};

#undef FIELD

}  // namespace

std::span<const ConfigKey> ConfigKeys() { return kKeys; }

const ConfigKey* FindConfigKey(std::string_view name) {
  for (const ConfigKey& key : kKeys) {
    if (name == key.name) return &key;
  }
  return nullptr;
}

}  // namespace ferrite

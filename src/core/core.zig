//! Root of the core: everything of the server that is not Python. It imports neither pydust nor the
//! C API, so that its tests compile and run without an interpreter.

pub const version = @import("build_options").version;
pub const sys = @import("sys.zig");
pub const forks = @import("forks.zig");
pub const reactor = @import("reactor.zig");
pub const deadlines = @import("deadlines.zig");
pub const predictor = @import("predictor.zig");
pub const scheduler = @import("scheduler.zig");
pub const pages = @import("pages.zig");
pub const fields = @import("fields.zig");
pub const framing = @import("framing.zig");
pub const host = @import("host.zig");
pub const target = @import("target.zig");
pub const cidr = @import("cidr.zig");
pub const forwarded = @import("forwarded.zig");
pub const proxy_header = @import("proxy_header.zig");
pub const proxies = @import("proxies.zig");
pub const notices = @import("notices.zig");
pub const chunked = @import("chunked.zig");
pub const trailer_fields = @import("trailer_fields.zig");
pub const in_flight = @import("in_flight.zig");
pub const access_log = @import("access_log.zig");
pub const log_text = @import("log_text.zig");
pub const log_writer = @import("log_writer.zig");
pub const metrics = @import("metrics.zig");
pub const observer = @import("observer.zig");
pub const reasons = @import("reasons.zig");
pub const request_id = @import("request_id.zig");
pub const timing = @import("timing.zig");
pub const request_head = @import("request_head.zig");
pub const response_head = @import("response_head.zig");
pub const body = @import("body.zig");
pub const buffer_memory = @import("buffer_memory.zig");
pub const refusal = @import("refusal.zig");
pub const reply = @import("reply.zig");
pub const exchange = @import("exchange.zig");
pub const connection = @import("connection.zig");
pub const suspension = @import("suspension.zig");
pub const poller = @import("poller.zig");
pub const server = @import("server.zig");
pub const overdue = @import("overdue.zig");
pub const eviction = @import("eviction.zig");
pub const kernel_memory = @import("kernel_memory.zig");
pub const health = @import("health.zig");
pub const inspector = @import("inspector.zig");
pub const watchdog = @import("watchdog.zig");
pub const json = @import("json.zig");
pub const admin = @import("admin.zig");
pub const admin_hosts = @import("admin_hosts.zig");
pub const admin_pages = @import("admin_pages.zig");

pub const date_parser = @import("date_parser.zig");
pub const field_values = @import("field_values.zig");
pub const conditional = @import("conditional.zig");
pub const ranges = @import("ranges.zig");
pub const content_coding = @import("content_coding.zig");
pub const media_types = @import("media_types.zig");
pub const file_path = @import("file_path.zig");
pub const multipart = @import("multipart.zig");
pub const static = @import("static.zig");
pub const file_part = @import("file_part.zig");

test {
    @import("std").testing.refAllDecls(@This());
    _ = @import("log_test.zig");
    _ = @import("scheduler_test.zig");
    _ = @import("scheduler_own_test.zig");
    _ = @import("server_test.zig");
    _ = @import("eviction_test.zig");
    _ = @import("admin_test.zig");
    _ = @import("proxies_test.zig");
    _ = @import("static_test.zig");
}

//! The fuzz targets by name: `fn run(std.mem.Allocator, []const u8) void`, which panics where a
//! promise is broken.
//!
//! Data: none. Thread: one, since targets keep buffers. GIL: not needed.

pub const request_head = @import("request_head.zig");
pub const framing = @import("framing.zig");
pub const chunked = @import("chunked.zig");
pub const connection = @import("connection.zig");
pub const proxy_header = @import("proxy_header.zig");
pub const forwarded = @import("forwarded.zig");

//! The state of the whole process as JSON: /status, and /threads where the GIL cannot be had.
//!
//! Numbers are read one after another while the server goes on, so they need not agree to the last
//! request. The admin thread; GIL: not needed.

const std = @import("std");
const builtin = @import("builtin");
const build_options = @import("build_options");
const sys = @import("sys.zig");
const Admin = @import("admin.zig").Admin;
const Server = @import("server.zig").Server;
const Writer = std.Io.Writer;
const Stringify = std.json.Stringify;

pub fn write(admin: *Admin, writer: *Writer) Writer.Error!void {
    var json: Stringify = .{ .writer = writer };
    try json.beginObject();
    try json.objectField("version");
    try json.write(build_options.version);
    try json.objectField("python");
    try json.write(admin.options.python);
    try json.objectField("zig");
    try json.write(builtin.zig_version_string);
    try json.objectField("pid");
    try json.write(sys.process_id());
    try json.objectField("uptime");
    try json.write(seconds(sys.monotonic_ms() -| admin.started_ms));
    try json.objectField("state");
    const server = admin.server.load(.acquire);
    const stage = admin.stage.load(.acquire);
    const is_draining = if (server) |one| one.health.is_leaving() else false;
    try json.write(if (is_draining) "draining" else @tagName(stage));
    if (server) |one| try write_server(&json, one);
    try json.objectField("config");
    try json.beginWriteRaw();
    try writer.writeAll(admin.options.config);
    json.endWriteRaw();
    try json.endObject();
    try writer.writeByte('\n');
}

fn write_server(json: *Stringify, server: *Server) Stringify.Error!void {
    const counts = server.counts();
    try json.objectField("counts");
    try json.write(counts);
}

pub fn write_threads(admin: *Admin, writer: *Writer) Writer.Error!void {
    _ = admin;
    var json: Stringify = .{ .writer = writer };
    try json.beginObject();
    try json.objectField("error");
    try json.write("the GIL could not be taken within 1 s, so there are no Python stacks");
    try json.endObject();
    try writer.writeByte('\n');
}

fn seconds(duration_ms: u64) f64 {
    return @as(f64, @floatFromInt(duration_ms)) / std.time.ms_per_s;
}

//! Every system call that the core makes, as functions that return errors instead of errno.
//!
//! No other file of src/core calls libc, so that a failing kernel can be simulated in one place.
//! The wrappers of std.posix declare some errnos "unreachable", which would let a peer's timing end
//! the process; these map whatever they do not know to `error.Unexpected`. EINTR is retried here,
//! except where a signal is what the caller waits for. No state, any thread; none of these blocks
//! with the GIL held except where its caller says so.

const std = @import("std");
const builtin = @import("builtin");
const c = std.c;
/// Where the calls go that a kernel can fail: to libc. The core's tests have faults of their own.
const kernel = if (builtin.is_test) @import("kernel_fixture.zig") else c;

pub const Fd = c.fd_t;
pub const no_fd: Fd = -1;
pub const is_linux = builtin.os.tag == .linux;

pub const Iovec = std.posix.iovec_const;

fn errno() c.E {
    return @enumFromInt(c._errno().*);
}

// ---- Time --------------------------------------------------------------------------------------

/// The coarse clocks cost a few nanoseconds (no counter is read) and are a kernel tick behind at
/// the most, which is finer than any timeout or date here needs.
const monotonic_clock: c.clockid_t = if (is_linux) .MONOTONIC_COARSE else .MONOTONIC_RAW_APPROX;
const realtime_clock: c.clockid_t = if (is_linux) .REALTIME_COARSE else .REALTIME;
/// The counter behind `monotonic_clock`; macOS counts CLOCK_MONOTONIC from another moment.
const precise_clock: c.clockid_t = if (is_linux) .MONOTONIC else .MONOTONIC_RAW;

/// Milliseconds of a clock that never goes back.
pub fn monotonic_ms() u64 {
    var value: c.timespec = undefined;
    if (c.clock_gettime(monotonic_clock, &value) != 0) return 0;
    const seconds: u64 = @intCast(@max(0, value.sec));
    return seconds * std.time.ms_per_s +
        @as(u64, @intCast(@max(0, value.nsec))) / std.time.ns_per_ms;
}

/// Nanoseconds of the same clock's precise kind, for measuring; some 25 ns a call.
pub fn monotonic_ns() u64 {
    var value: c.timespec = undefined;
    if (c.clock_gettime(precise_clock, &value) != 0) return 0;
    const seconds: u64 = @intCast(@max(0, value.sec));
    return seconds * std.time.ns_per_s + @as(u64, @intCast(@max(0, value.nsec)));
}

/// Seconds since the epoch.
pub fn realtime_seconds() u64 {
    var value: c.timespec = undefined;
    if (c.clock_gettime(realtime_clock, &value) != 0) return 0;
    return @intCast(@max(0, value.sec));
}

/// Milliseconds since the epoch, of the same clock.
pub fn realtime_ms() u64 {
    var value: c.timespec = undefined;
    if (c.clock_gettime(realtime_clock, &value) != 0) return 0;
    const seconds: u64 = @intCast(@max(0, value.sec));
    return seconds * std.time.ms_per_s +
        @as(u64, @intCast(@max(0, value.nsec))) / std.time.ns_per_ms;
}

// ---- Sockets -----------------------------------------------------------------------------------

pub const ReadError = error{ WouldBlock, ConnectionGone, OutOfMemory, Unexpected };

/// Bytes received; 0 is the end of the stream.
pub fn recv(fd: Fd, buffer: []u8) ReadError!usize {
    while (true) {
        const count = kernel.recv(fd, buffer.ptr, buffer.len, 0);
        if (count >= 0) return @intCast(count);
        switch (errno()) {
            .INTR => continue,
            .AGAIN => return error.WouldBlock,
            .CONNRESET, .PIPE, .NOTCONN, .TIMEDOUT, .HOSTUNREACH, .NETUNREACH => {
                return error.ConnectionGone;
            },
            .NOMEM, .NOBUFS => return error.OutOfMemory,
            else => return error.Unexpected,
        }
    }
}

/// Whether the client has closed its sending side or the connection is broken. Bytes that wait
/// hide an end behind them.
pub fn has_ended(fd: Fd) bool {
    var byte: [1]u8 = undefined;
    const count = kernel.recv(fd, &byte, 1, c.MSG.PEEK | c.MSG.DONTWAIT);
    if (count >= 0) return count == 0;
    return switch (errno()) {
        .AGAIN, .INTR => false,
        else => true,
    };
}

pub const WriteError = error{ WouldBlock, ConnectionGone, OutOfMemory, Unexpected };

/// Bytes that the kernel took, at least one unless `bytes` is empty.
pub fn send(fd: Fd, bytes: []const u8) WriteError!usize {
    while (true) {
        const count = kernel.send(fd, bytes.ptr, bytes.len, c.MSG.NOSIGNAL);
        if (count >= 0) return @intCast(count);
        if (try retry_write()) continue;
    }
}

/// The same for several pieces that leave as one.
pub fn send_vector(fd: Fd, pieces: []const Iovec) WriteError!usize {
    return send_message(fd, pieces, 0);
}

/// Whether `send_held` holds anything back on this system.
pub const can_hold = is_linux;

/// The same, and what does not fill a segment waits for the next bytes or for `push`.
pub fn send_held(fd: Fd, pieces: []const Iovec) WriteError!usize {
    return send_message(fd, pieces, if (can_hold) c.MSG.MORE else 0);
}

/// Sends what `send_held` held back. Any thread; does no harm to another socket or a closed one.
pub fn push(fd: Fd) void {
    // Setting the option, even anew, makes Linux send what is pending (tcp(7)).
    set_no_delay(fd);
}

fn send_message(fd: Fd, pieces: []const Iovec, flags: u32) WriteError!usize {
    var message = std.mem.zeroes(c.msghdr_const);
    message.iov = pieces.ptr;
    message.iovlen = @intCast(pieces.len);
    while (true) {
        const count = kernel.sendmsg(fd, &message, c.MSG.NOSIGNAL | flags);
        if (count >= 0) return @intCast(count);
        if (try retry_write()) continue;
    }
}

/// The same, where the rest of the response follows at once: the kernel may wait for it, so that
/// both leave in one packet.
pub fn send_vector_before_more(fd: Fd, pieces: []const Iovec) WriteError!usize {
    var message = std.mem.zeroes(c.msghdr_const);
    message.iov = pieces.ptr;
    message.iovlen = @intCast(pieces.len);
    const more = if (is_linux) std.os.linux.MSG.MORE else 0;
    while (true) {
        const count = kernel.sendmsg(fd, &message, c.MSG.NOSIGNAL | more);
        if (count >= 0) return @intCast(count);
        if (try retry_write()) continue;
    }
}

pub const SendFileError = WriteError || error{
    /// The file system or the socket does not know how: read and send instead.
    Unsupported,
    /// The file cannot be read.
    FileUnreadable,
};

/// Of one call; Linux takes no more.
const send_file_bytes_max = 0x7fff_f000;

/// Sends bytes of a regular file, from `offset` on, without a copy through the process. 0 at the
/// file's end. Blocks where the bytes have to come from a disk.
pub fn send_file(socket: Fd, file: Fd, offset: u64, count: u64) SendFileError!usize {
    const size: usize = @intCast(@min(count, send_file_bytes_max));
    while (true) {
        const sent = if (is_linux)
            send_file_linux(socket, file, offset, size)
        else
            send_file_darwin(socket, file, offset, size);
        if (sent) |bytes| return bytes;
        switch (errno()) {
            .INTR => continue,
            .INVAL, .NOSYS, .OPNOTSUPP, .NOTSOCK => return error.Unsupported,
            .IO, .OVERFLOW, .BADF => return error.FileUnreadable,
            else => if (try retry_write()) continue,
        }
    }
}

/// Null after an error.
fn send_file_linux(socket: Fd, file: Fd, offset: u64, size: usize) ?usize {
    var position: c.off_t = @intCast(offset);
    const sent = kernel.sendfile(socket, file, &position, size);
    return if (sent >= 0) @intCast(sent) else null;
}

/// An error may come with bytes that were sent before it.
fn send_file_darwin(socket: Fd, file: Fd, offset: u64, size: usize) ?usize {
    var length: c.off_t = @intCast(size);
    const result = c.sendfile(file, socket, @intCast(offset), &length, null, 0);
    if (result == 0 or length > 0) return @intCast(length);
    return null;
}

fn retry_write() WriteError!bool {
    return switch (errno()) {
        .INTR => true,
        .AGAIN => error.WouldBlock,
        .CONNRESET, .PIPE, .NOTCONN, .TIMEDOUT, .HOSTUNREACH, .NETUNREACH => error.ConnectionGone,
        .NOMEM, .NOBUFS => error.OutOfMemory,
        else => error.Unexpected,
    };
}

/// The address of a client as the kernel gave it; `family` 0 stands for a unix socket without name.
pub const Address = extern union {
    any: c.sockaddr,
    in4: c.sockaddr.in,
    in6: c.sockaddr.in6,
};

pub const address_text_bytes_max = 64;

/// The address without the port, as text; empty for a unix socket.
pub fn address_text(address: *const Address, storage: *[address_text_bytes_max]u8) []const u8 {
    const text = switch (address.any.family) {
        c.AF.INET => inet_ntop(c.AF.INET, &address.in4.addr, storage, storage.len),
        c.AF.INET6 => inet_ntop(c.AF.INET6, &address.in6.addr, storage, storage.len),
        else => return "",
    };
    return if (text) |pointer| std.mem.span(pointer) else "";
}

/// The four bytes of an IPv4 address; null for any other.
pub fn address_bytes4(address: *const Address) ?[4]u8 {
    if (address.any.family != c.AF.INET) return null;
    return std.mem.toBytes(address.in4.addr);
}

/// Null where there is none: a unix socket, or a client of whom only the address was told.
pub fn address_port(address: *const Address) ?u16 {
    const port = switch (address.any.family) {
        c.AF.INET => std.mem.bigToNative(u16, address.in4.port),
        c.AF.INET6 => std.mem.bigToNative(u16, address.in6.port),
        else => 0,
    };
    return if (port == 0) null else port;
}

/// Of a client that has none, or none that anybody tells.
pub const no_address: Address = std.mem.zeroes(Address);

/// An address of the internet protocols as one of IPv6, IPv4 mapped (RFC 4291 2.5.5.2); null for
/// any other.
pub fn address_octets(address: *const Address) ?[16]u8 {
    switch (address.any.family) {
        c.AF.INET => {
            const mapped_prefix: [12]u8 = @as([10]u8, @splat(0)) ++ [2]u8{ 0xff, 0xff };
            return mapped_prefix ++ std.mem.toBytes(address.in4.addr);
        },
        c.AF.INET6 => return address.in6.addr,
        else => return null,
    }
}

/// With a port of 0 where none is known.
pub fn ipv4_address(octets: [4]u8, port: u16) Address {
    var address = no_address;
    address.in4 = .{
        .port = std.mem.nativeToBig(u16, port),
        .addr = std.mem.bytesToValue(u32, &octets),
    };
    return address;
}

pub fn ipv6_address(octets: [16]u8, port: u16) Address {
    var address = no_address;
    address.in6 = .{
        .port = std.mem.nativeToBig(u16, port),
        .flowinfo = 0,
        .addr = octets,
        .scope_id = 0,
    };
    return address;
}

extern "c" fn inet_ntop(
    family: c_int,
    source: *const anyopaque,
    destination: [*]u8,
    size: c.socklen_t,
) ?[*:0]const u8;

pub const AcceptError = error{
    WouldBlock,
    ConnectionGone,
    DescriptorsExhausted,
    OutOfMemory,
    Unexpected,
};

pub const Accepted = struct { fd: Fd, address: Address };

/// Takes one connection from the backlog, non-blocking and closed on exec.
pub fn accept(listener: Fd) AcceptError!Accepted {
    // A unix client's address can be longer than `Address`; the kernel cuts it, and only its family
    // is looked at.
    var address = std.mem.zeroes(Address);
    while (true) {
        var length: c.socklen_t = @sizeOf(Address);
        const fd = if (is_linux)
            kernel.accept4(listener, &address.any, &length, c.SOCK.NONBLOCK | c.SOCK.CLOEXEC)
        else
            kernel.accept(listener, &address.any, &length);
        if (fd >= 0) {
            if (!is_linux) prepare_accepted(fd);
            return .{ .fd = fd, .address = address };
        }
        switch (errno()) {
            .INTR => continue,
            .AGAIN => return error.WouldBlock,
            .MFILE, .NFILE => return error.DescriptorsExhausted,
            .NOBUFS, .NOMEM => return error.OutOfMemory,
            // What accept(2) hands on of a connection that failed while it waited.
            .CONNABORTED, .PERM, .PROTO, .NETDOWN, .HOSTUNREACH, .NETUNREACH => {
                return error.ConnectionGone;
            },
            else => return error.Unexpected,
        }
    }
}

/// macOS has no accept4, and its older releases know MSG_NOSIGNAL only as this option.
fn prepare_accepted(fd: Fd) void {
    set_nonblocking(fd);
    set_close_on_exec(fd);
    if (@hasDecl(c.SO, "NOSIGPIPE")) {
        const on: c_int = 1;
        _ = c.setsockopt(fd, c.SOL.SOCKET, c.SO.NOSIGPIPE, &on, @sizeOf(c_int));
    }
}

/// A process that the application starts must not inherit the descriptor.
fn set_close_on_exec(fd: Fd) void {
    _ = c.fcntl(fd, c.F.SETFD, @as(c_int, c.FD_CLOEXEC));
}

pub fn set_nonblocking(fd: Fd) void {
    const flags = c.fcntl(fd, c.F.GETFL, @as(c_int, 0));
    var options: c.O = @bitCast(flags);
    options.NONBLOCK = true;
    _ = c.fcntl(fd, c.F.SETFL, @as(c_int, @bitCast(options)));
}

/// Small responses leave at once (RFC 1122 4.2.3.4 lets the kernel wait otherwise). Set on a
/// listener, accepted connections inherit it; on a unix socket it fails, which does not matter.
pub fn set_no_delay(fd: Fd) void {
    const on: c_int = 1;
    const tcp_nodelay = 1;
    _ = c.setsockopt(fd, c.IPPROTO.TCP, tcp_nodelay, &on, @sizeOf(c_int));
}

/// Lets nobody new connect to a listener of ours alone, while those who are about to can still be
/// accepted. False where the system knows no such thing.
///
/// Closing a listener resets every connection that the kernel has established and nobody has
/// accepted, and those in the middle of the handshake. So the first packet of a handshake is
/// dropped (the client repeats it after a second, and is refused then) and the last one let pass.
pub fn stop_arrivals(listener: Fd) bool {
    if (!is_linux) return false;
    var address = std.mem.zeroes(Address);
    var length: c.socklen_t = @sizeOf(Address);
    if (c.getsockname(listener, &address.any, &length) != 0) return false;
    // connect(2) on a unix socket is refused then, and what is in the queue stays.
    if (address.any.family == c.AF.UNIX) return c.shutdown(listener, c.SHUT.RD) == 0;
    const Instruction = extern struct { code: u16, if_true: u8 = 0, if_false: u8 = 0, value: u32 };
    const tcp_flags_offset = 13;
    const syn = 0x02;
    // Classic BPF (linux/filter.h): load a byte, test bits, return how much of the packet stays.
    const program = [_]Instruction{
        .{ .code = 0x30, .value = tcp_flags_offset },
        .{ .code = 0x45, .if_false = 1, .value = syn },
        .{ .code = 0x06, .value = 0 },
        .{ .code = 0x06, .value = std.math.maxInt(u32) },
    };
    const Filter = extern struct { length: u16, program: [*]const Instruction };
    const filter: Filter = .{ .length = program.len, .program = &program };
    const attach_filter = 26;
    return c.setsockopt(
        listener,
        c.SOL.SOCKET,
        attach_filter,
        &filter,
        @sizeOf(Filter),
    ) == 0;
}

/// The kernel takes no more than about so many bytes that it cannot send yet; those on their way do
/// not count, so that a client far away is as fast as it can be. On a unix socket it fails, which
/// does not matter.
pub fn limit_unsent(fd: Fd, bytes: u32) void {
    const tcp_notsent_lowat = if (is_linux) 25 else 0x201;
    const value: c_int = @intCast(bytes);
    _ = c.setsockopt(fd, c.IPPROTO.TCP, tcp_notsent_lowat, &value, @sizeOf(c_int));
}

/// What the peer's kernel has not acknowledged of all that was sent; on a unix socket, what the
/// peer has not read, and more. Null where the system does not tell.
pub fn unacknowledged(fd: Fd) ?u32 {
    var count: c_int = 0;
    if (is_linux) {
        const siocoutq = 0x5411; // tcp(7), unix(7)
        if (c.ioctl(fd, siocoutq, &count) != 0) return null;
    } else {
        const so_nwrite = 0x1024;
        var size: c.socklen_t = @sizeOf(c_int);
        if (c.getsockopt(fd, c.SOL.SOCKET, so_nwrite, &count, &size) != 0) return null;
    }
    return @intCast(@max(0, count));
}

/// Says that nothing more will be sent; the client can still be read.
pub fn shutdown_send(fd: Fd) void {
    _ = c.shutdown(fd, c.SHUT.WR);
}

/// Makes `close` reset the connection instead of ending it in order.
pub fn reset_on_close(fd: Fd) void {
    const Linger = extern struct { on: c_int, seconds: c_int };
    const option: Linger = .{ .on = 1, .seconds = 0 };
    _ = c.setsockopt(fd, c.SOL.SOCKET, c.SO.LINGER, &option, @sizeOf(Linger));
}

/// Ends the connection in both directions without closing its descriptor; wakes who waits for it.
pub fn shutdown_both(fd: Fd) void {
    _ = c.shutdown(fd, c.SHUT.RDWR);
}

pub fn sleep_ms(duration_ms: u32) void {
    std.Thread.sleep(@as(u64, duration_ms) * std.time.ns_per_ms);
}

pub fn close(fd: Fd) void {
    // EINTR leaves the descriptor closed on Linux and macOS alike: no retry (close(2)).
    _ = c.close(fd);
}

/// Another descriptor of the same file, closed on exec; null when there is none (EBADF, EMFILE).
pub fn duplicate(fd: Fd) ?Fd {
    const dupfd_cloexec: c_int = if (is_linux) 1030 else 67;
    const copy = c.fcntl(fd, dupfd_cloexec, @as(c_int, 0));
    return if (copy >= 0) copy else null;
}

pub const WaitFor = enum { readable, writable };

/// Waits until the socket is ready or `timeout_ms` has passed (false). Blocks: the caller is a
/// worker that has given the GIL away.
pub fn wait_ready(fd: Fd, what: WaitFor, timeout_ms: u64) bool {
    const events = events_of(what);
    const deadline = monotonic_ms() +| timeout_ms;
    while (true) {
        var entry = [1]c.pollfd{.{ .fd = fd, .events = events, .revents = 0 }};
        const now = monotonic_ms();
        const count = kernel.poll(&entry, 1, clamp_timeout(deadline -| now));
        if (count > 0) return true;
        if (count == 0 or errno() != .INTR) return false;
    }
}

/// Whether the socket is ready now; also true where the kernel cannot tell (ENOMEM, EINTR): whoever
/// takes it for silent would wait for an event that has come already.
pub fn may_be_ready(fd: Fd, what: WaitFor) bool {
    var entry = [1]c.pollfd{.{ .fd = fd, .events = events_of(what), .revents = 0 }};
    return kernel.poll(&entry, 1, 0) != 0;
}

fn events_of(what: WaitFor) i16 {
    return switch (what) {
        .readable => c.POLL.IN,
        .writable => c.POLL.OUT,
    };
}

fn clamp_timeout(timeout_ms: u64) c_int {
    return @intCast(@min(timeout_ms, std.math.maxInt(c_int)));
}

pub fn socket_pair() error{Unexpected}![2]Fd {
    var pair: [2]Fd = undefined;
    if (kernel.socketpair(c.AF.UNIX, c.SOCK.STREAM, 0, &pair) != 0) return error.Unexpected;
    for (pair) |fd| {
        set_nonblocking(fd);
        set_close_on_exec(fd);
    }
    return pair;
}

// ---- The main thread's wait --------------------------------------------------------------------

/// Waits until `fd` is readable, a signal comes or `timeout_ms` has passed.
pub fn wait_readable_or_signal(fd: Fd, timeout_ms: ?u64) void {
    var entry = [1]c.pollfd{.{ .fd = fd, .events = c.POLL.IN, .revents = 0 }};
    const timeout = if (timeout_ms) |ms| clamp_timeout(ms) else -1;
    _ = kernel.poll(&entry, 1, timeout);
}

// ---- Many sockets at once, for a thread with few of them ----------------------------------------

pub const PollEntry = c.pollfd;
pub const poll_readable: i16 = c.POLL.IN;
pub const poll_writable: i16 = c.POLL.OUT;

/// Waits until one of the descriptors is ready or the time is over; each entry's `revents` says
/// which. A negative descriptor is passed over. Returns early after a signal.
pub fn poll(entries: []PollEntry, timeout_ms: ?u64) void {
    const timeout = if (timeout_ms) |ms| clamp_timeout(ms) else -1;
    const count = kernel.poll(entries.ptr, @intCast(entries.len), timeout);
    if (count > 0) return;
    for (entries) |*entry| entry.revents = 0;
}

/// Whether one of the signal numbers that Python's C handler wrote begins a drain.
pub fn names_stop_signal(numbers: []const u8) bool {
    const stops = [_]u8{ c.SIG.TERM, c.SIG.INT, c.SIG.QUIT };
    return std.mem.indexOfAny(u8, numbers, &stops) != null;
}

// ---- The process -------------------------------------------------------------------------------

/// Writes to stderr, for want of anybody else who could.
pub fn write_error(text: []const u8) void {
    _ = c.write(2, text.ptr, text.len);
}

pub fn process_id() i32 {
    return c.getpid();
}

/// Ends the process without a word to anybody.
pub fn exit_now(status: u8) noreturn {
    c._exit(status);
}

/// Loads the library that glibc's pthread_exit(3) unwinds the stack with. glibc loads it when the
/// first thread ends, and aborts the process where there is no memory or descriptor for it by then.
pub fn load_unwinder() void {
    if (!builtin.target.isGnuLibC()) return;
    // Kept for good. Where it is missing, glibc says so itself.
    _ = c.dlopen("libgcc_s.so.1", .{ .NOW = true });
}

// ---- Files -------------------------------------------------------------------------------------

pub const FileError = error{ NoSpace, Unexpected };
pub const OpenError = FileError || error{ DescriptorsExhausted, OutOfMemory };

/// A file for reading and writing that no path leads to: it is gone when its descriptor is closed,
/// even when the process is killed.
pub fn open_unlinked(directory: []const u8) OpenError!Fd {
    var path: [std.posix.PATH_MAX]u8 = undefined;
    if (is_linux) {
        const folder = std.fmt.bufPrintZ(&path, "{s}", .{directory}) catch
            return error.Unexpected;
        const options: c.O = .{
            .ACCMODE = .RDWR,
            .TMPFILE = true,
            .DIRECTORY = true,
            .CLOEXEC = true,
        };
        const fd = kernel.open(folder.ptr, options, @as(c_uint, 0o600));
        if (fd >= 0) return fd;
        switch (errno()) {
            .OPNOTSUPP, .ISDIR, .NOENT => {}, // a file system without O_TMPFILE: as elsewhere
            else => |code| return open_error(code),
        }
    }
    const template = std.fmt.bufPrintZ(&path, "{s}/serve-zig-XXXXXX", .{directory}) catch
        return error.Unexpected;
    const fd = mkstemp(template.ptr);
    if (fd < 0) return open_error(errno());
    _ = c.unlink(template.ptr);
    set_close_on_exec(fd);
    return fd;
}

fn open_error(code: c.E) OpenError {
    return switch (code) {
        .NOSPC, .DQUOT => error.NoSpace,
        .MFILE, .NFILE => error.DescriptorsExhausted,
        .NOMEM => error.OutOfMemory,
        else => error.Unexpected,
    };
}

extern "c" fn mkstemp(template: [*:0]u8) c_int;

pub fn write_all_at(fd: Fd, bytes: []const u8, offset: u64) FileError!void {
    var done: usize = 0;
    while (done < bytes.len) {
        const rest = bytes[done..];
        const count = kernel.pwrite(fd, rest.ptr, rest.len, @intCast(offset + done));
        if (count > 0) {
            done += @intCast(count);
            continue;
        }
        if (count == 0) return error.NoSpace;
        switch (errno()) {
            .INTR => continue,
            .NOSPC, .DQUOT, .FBIG => return error.NoSpace,
            else => return error.Unexpected,
        }
    }
}

/// Bytes read; fewer than asked only at the end of the file.
pub fn read_at(fd: Fd, buffer: []u8, offset: u64) FileError!usize {
    var done: usize = 0;
    while (done < buffer.len) {
        const rest = buffer[done..];
        const count = kernel.pread(fd, rest.ptr, rest.len, @intCast(offset + done));
        if (count == 0) break;
        if (count > 0) {
            done += @intCast(count);
            continue;
        }
        if (errno() != .INTR) return error.Unexpected;
    }
    return done;
}

/// The beginning of a small file, such as those below /proc; null where it cannot be read.
pub fn read_text(path: [*:0]const u8, buffer: []u8) ?[]const u8 {
    const fd = c.open(path, .{ .ACCMODE = .RDONLY, .CLOEXEC = true });
    if (fd < 0) return null;
    defer close(fd);
    const count = c.read(fd, buffer.ptr, buffer.len);
    return if (count < 0) null else buffer[0..@intCast(count)];
}

// ---- Log files ---------------------------------------------------------------------------------

/// Opens a file to write at its end, whoever else writes there. A FIFO must have a reader.
pub fn open_log(path: [:0]const u8) ?Fd {
    const options: c.O = .{
        .ACCMODE = .WRONLY,
        .APPEND = true,
        .CREAT = true,
        .CLOEXEC = true,
        .NONBLOCK = true,
        .NOCTTY = true,
    };
    const fd = c.open(path.ptr, options, @as(c_uint, 0o644));
    return if (fd >= 0) fd else null;
}

/// Whether it is a file and not a pipe, a socket or a terminal.
pub fn is_seekable(fd: Fd) bool {
    return c.lseek(fd, 0, c.SEEK.CUR) >= 0;
}

/// Bytes written. Whoever asks knows that something can be written now, or does not mind to wait.
pub fn write_log(fd: Fd, bytes: []const u8) error{ WouldBlock, Failed }!usize {
    while (true) {
        const count = c.write(fd, bytes.ptr, bytes.len);
        if (count >= 0) return @intCast(count);
        switch (errno()) {
            .INTR => continue,
            .AGAIN => return error.WouldBlock,
            else => return error.Failed,
        }
    }
}

/// What the core wants to know of an open file.
pub const FileInfo = struct {
    kind: Kind,
    size: u64,
    /// Since the epoch; an earlier time counts as the epoch.
    modified_ns: u64,
    changed_ns: u64,
    device: u64,
    inode: u64,

    pub const Kind = enum { regular, directory, other };
};

pub fn file_info(fd: Fd) error{Unexpected}!FileInfo {
    var stat: c.Stat = undefined;
    if (kernel.fstat(fd, &stat) != 0) return error.Unexpected;
    const mode: u32 = @intCast(stat.mode);
    return .{
        .kind = if (c.S.ISREG(@intCast(mode)))
            .regular
        else if (c.S.ISDIR(@intCast(mode)))
            .directory
        else
            .other,
        .size = @intCast(@max(0, stat.size)),
        .modified_ns = nanoseconds(stat.mtime()),
        .changed_ns = nanoseconds(stat.ctime()),
        .device = @as(u64, @bitCast(@as(i64, @intCast(stat.dev)))),
        .inode = @intCast(stat.ino),
    };
}

fn nanoseconds(time: c.timespec) u64 {
    const seconds: u64 = @intCast(@max(0, time.sec));
    return seconds *| std.time.ns_per_s +| @as(u64, @intCast(@max(0, time.nsec)));
}

pub const FindError = error{
    /// Not there, not to be read, or not to be reached without leaving the directory.
    NotFound,
    DescriptorsExhausted,
    /// openat2 is not there, or not allowed.
    Unsupported,
};

/// A directory to open files below.
pub fn open_directory(path: [*:0]const u8) FindError!Fd {
    return open_at(c.AT.FDCWD, path, .{ .ACCMODE = .RDONLY, .DIRECTORY = true, .CLOEXEC = true });
}

/// A name right in a directory; a symbolic link is not found.
pub fn open_directory_in(directory: Fd, name: [*:0]const u8) FindError!Fd {
    var options: c.O = .{
        .ACCMODE = .RDONLY,
        .DIRECTORY = true,
        .NOFOLLOW = true,
        .CLOEXEC = true,
    };
    // Who may pass through a directory need not be able to list it.
    if (is_linux) options.PATH = true;
    return open_at(directory, name, options);
}

/// The same for what is to be read; a FIFO or a device is opened without waiting.
pub fn open_file_in(directory: Fd, name: [*:0]const u8) FindError!Fd {
    var options = reading_options;
    options.NOFOLLOW = true;
    return open_at(directory, name, options);
}

const reading_options: c.O = .{
    .ACCMODE = .RDONLY,
    .NONBLOCK = true,
    .NOCTTY = true,
    .CLOEXEC = true,
};

/// Opens a relative path for reading. Symbolic links are followed as long as they stay below the
/// directory (openat2(2), RESOLVE_BENEATH).
pub fn open_beneath(directory: Fd, path: [*:0]const u8) FindError!Fd {
    if (!is_linux) return error.Unsupported;
    const How = extern struct { flags: u64, mode: u64, resolve: u64 };
    const resolve_no_magic_links = 0x02;
    const resolve_beneath = 0x08;
    var options = reading_options;
    if (@hasField(c.O, "LARGEFILE")) options.LARGEFILE = true;
    const how: How = .{
        .flags = @as(u32, @bitCast(options)),
        .mode = 0,
        .resolve = resolve_beneath | resolve_no_magic_links,
    };
    const linux = std.os.linux;
    const raw = if (builtin.is_test) kernel else linux;
    // EAGAIN: something was renamed meanwhile, so that a ".." of a link could not be judged.
    for (0..8) |_| {
        const result = raw.syscall4(
            .openat2,
            @as(usize, @bitCast(@as(isize, directory))),
            @intFromPtr(path),
            @intFromPtr(&how),
            @sizeOf(How),
        );
        switch (linux.E.init(result)) {
            .SUCCESS => return @intCast(result),
            .INTR, .AGAIN => continue,
            .NOSYS, .PERM => return error.Unsupported,
            .MFILE, .NFILE, .NOMEM => return error.DescriptorsExhausted,
            else => return error.NotFound,
        }
    }
    return error.NotFound;
}

fn open_at(directory: Fd, path: [*:0]const u8, options: c.O) FindError!Fd {
    while (true) {
        const fd = kernel.openat(directory, path, options);
        if (fd >= 0) return fd;
        switch (errno()) {
            .INTR => continue,
            .MFILE, .NFILE, .NOMEM => return error.DescriptorsExhausted,
            else => return error.NotFound,
        }
    }
}

// ---- epoll -------------------------------------------------------------------------------------

pub const epoll = if (is_linux) struct {
    const linux = std.os.linux;
    pub const Event = linux.epoll_event;
    pub const IN = linux.EPOLL.IN;
    pub const OUT = linux.EPOLL.OUT;
    pub const RDHUP = linux.EPOLL.RDHUP;
    pub const HUP = linux.EPOLL.HUP;
    pub const ERR = linux.EPOLL.ERR;
    pub const ET = linux.EPOLL.ET;
    pub const ONESHOT = linux.EPOLL.ONESHOT;

    pub fn create() error{ OutOfMemory, Unexpected }!Fd {
        const fd = kernel.epoll_create1(linux.EPOLL.CLOEXEC);
        if (fd >= 0) return fd;
        return if (errno() == .NOMEM) error.OutOfMemory else error.Unexpected;
    }

    pub fn add(poll_fd: Fd, fd: Fd, events: u32, token: u64) RegisterError!void {
        var event: Event = .{ .events = events, .data = .{ .u64 = token } };
        if (kernel.epoll_ctl(poll_fd, linux.EPOLL.CTL_ADD, fd, &event) == 0) return;
        return switch (errno()) {
            .NOMEM, .NOSPC => error.OutOfMemory,
            else => error.Unexpected,
        };
    }

    pub fn remove(poll_fd: Fd, fd: Fd) void {
        _ = kernel.epoll_ctl(poll_fd, linux.EPOLL.CTL_DEL, fd, null);
    }

    /// The number of events; 0 after the timeout or a signal.
    pub fn wait(poll_fd: Fd, events: []Event, timeout_ns: ?u64) usize {
        const ns = timeout_ns orelse return wait_ms(poll_fd, events, -1);
        if (ns > 0 and ns < std.time.ns_per_ms) return wait_briefly(poll_fd, events, ns);
        return wait_ms(poll_fd, events, clamp_timeout(ns / std.time.ns_per_ms));
    }

    fn wait_ms(poll_fd: Fd, events: []Event, timeout_ms: c_int) usize {
        const count = c.epoll_wait(poll_fd, events.ptr, @intCast(events.len), timeout_ms);
        return if (count > 0) @intCast(count) else 0;
    }

    /// Less than a millisecond. Where the call is missing (before Linux 5.11, some sandboxes) it
    /// does not wait at all.
    fn wait_briefly(poll_fd: Fd, events: []Event, timeout_ns: u64) usize {
        const timeout: linux.timespec = .{ .sec = 0, .nsec = @intCast(timeout_ns) };
        const count: isize = @bitCast(linux.syscall6(
            .epoll_pwait2,
            @intCast(poll_fd),
            @intFromPtr(events.ptr),
            events.len,
            @intFromPtr(&timeout),
            0,
            0,
        ));
        if (count >= 0) return @intCast(count);
        const was_interrupted = count == -@as(isize, @intFromEnum(linux.E.INTR));
        return if (was_interrupted) 0 else wait_ms(poll_fd, events, 0);
    }

    pub fn event_fd() error{Unexpected}!Fd {
        const fd = kernel.eventfd(0, linux.EFD.CLOEXEC | linux.EFD.NONBLOCK);
        return if (fd >= 0) fd else error.Unexpected;
    }

    pub fn event_fd_add(fd: Fd) void {
        const one: u64 = 1;
        // It can fail only with EAGAIN at 2^64 - 2, when the reader is woken anyway.
        _ = c.write(fd, std.mem.asBytes(&one), @sizeOf(u64));
    }

    pub fn event_fd_reset(fd: Fd) void {
        var value: u64 = 0;
        _ = c.read(fd, std.mem.asBytes(&value), @sizeOf(u64));
    }
} else struct {};

pub const RegisterError = error{ OutOfMemory, Unexpected };

test "a coarse clock goes on and a date is of this century" {
    const before = monotonic_ms();
    _ = wait_ready(-1, .readable, 20);
    try std.testing.expect(monotonic_ms() >= before);
    try std.testing.expect(realtime_seconds() > 1_700_000_000);
}

test "an unlinked file keeps what was written" {
    const fd = try open_unlinked("/tmp");
    defer close(fd);
    try write_all_at(fd, "hello", 3);
    var buffer: [16]u8 = undefined;
    try std.testing.expectEqual(8, try read_at(fd, &buffer, 0));
    try std.testing.expectEqualStrings("\x00\x00\x00hello", buffer[0..8]);
}

test "a socket without data would block and one whose peer left is at its end" {
    const pair = try socket_pair();
    defer close(pair[0]);
    var buffer: [4]u8 = undefined;
    try std.testing.expectError(error.WouldBlock, recv(pair[0], &buffer));
    try std.testing.expect(!wait_ready(pair[0], .readable, 1));
    close(pair[1]);
    try std.testing.expect(wait_ready(pair[0], .readable, 1000));
    try std.testing.expectEqual(0, try recv(pair[0], &buffer));
    try std.testing.expectError(error.ConnectionGone, send(pair[0], "x"));
}

//! `wsgi.file_wrapper` (PEP 3333, "Optional Platform-Specific File Handling"): an iterable of
//! blocks of a file-like object. GIL held. The object's own methods are called, so any file-like
//! will do; where they would only give the bytes of a regular file, the file itself is sent.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const names_module = @import("names.zig");
const Object = capi.Object;

const default_block_bytes = 64 * 1024;

pub const FileWrapper = extern struct {
    head: Object,
    weak_references: ?*Object,
    filelike: ?*Object,
    block: ?*Object,
    /// In the list of those whose turn to be freed comes later.
    next: ?*FileWrapper,
};

var type_object: ?*capi.Type = null;
var keys: *const names_module.Keys = undefined;
/// The standard library's types of files whose `read` gives the bytes of their descriptor.
var plain_type: *capi.Type = undefined;
var reader_type: *capi.Type = undefined;
var random_type: *capi.Type = undefined;

/// The class, for the environ; a new reference.
pub fn init_type(own_keys: *const names_module.Keys) capi.Error!*Object {
    keys = own_keys;
    const io = try capi.owned(capi.PyImport_ImportModule("io"));
    defer capi.drop(io);
    plain_type = try type_of(io, "FileIO");
    reader_type = try type_of(io, "BufferedReader");
    random_type = try type_of(io, "BufferedRandom");
    type_object = capi.PyType_FromSpec(&spec) orelse return error.Raised;
    return @ptrCast(@alignCast(type_object.?));
}

fn type_of(module: *Object, name: [*:0]const u8) capi.Error!*capi.Type {
    return @ptrCast(@alignCast(try capi.owned(capi.PyObject_GetAttrString(module, name))));
}

/// Whether it is one of ours, and not something that an application has put round it.
pub fn is_wrapper(object: *const Object) bool {
    return capi.is_exact(object, type_object.?);
}

// ---- The file itself ---------------------------------------------------------------------------

/// What is left of the regular file that the wrapper's blocks would come from, with a descriptor of
/// its own; null where only its `read` can tell what it gives. Never raises.
pub fn open_regular(wrapper: *Object) ?core.file_part.FilePart {
    const filelike = capi.new(of(wrapper).filelike.?);
    defer capi.drop(filelike);
    return find_regular(filelike) catch {
        // Reading will say what is wrong with the file, if anything is.
        capi.PyErr_Clear();
        return null;
    };
}

fn find_regular(filelike: *Object) capi.Error!?core.file_part.FilePart {
    const file = try reading_file(filelike) orelse return null;
    defer capi.drop(file);
    if (!try is_real(file)) return null;
    const position = try call_integer(file, keys.tell);
    const number = try call_integer(file, keys.fileno);
    if (position < 0 or number < 0 or number > std.math.maxInt(c_int)) return null;
    const offset: u64 = @intCast(position);
    const fd = core.sys.duplicate(@intCast(number)) orelse return null;
    const info = core.sys.file_info(fd) catch {
        core.sys.close(fd);
        return null;
    };
    // Of size 0 are also files that have contents, such as those of /proc.
    if (info.kind != .regular or info.size <= offset) {
        core.sys.close(fd);
        return null;
    }
    return .{ .fd = fd, .offset = offset, .remaining = info.size - offset };
}

/// The object whose own `read` is called where the file-like's is: itself, or what a proxy such as
/// Django's `File` stands for. A new reference; null for a `read` that is written in Python, which
/// may give anything, as may that of gzip's files, whose descriptor has other bytes.
fn reading_file(filelike: *Object) capi.Error!?*Object {
    const read = try capi.owned(capi.PyObject_GetAttr(filelike, keys.read));
    defer capi.drop(read);
    // A subtype where the method wants to know the class, as FileIO's does from CPython 3.13 on.
    if (capi.is_kind_of(read, &capi.PyCFunction_Type)) {
        return capi.new(capi.PyCFunction_GetSelf(read) orelse return null);
    }
    // NamedTemporaryFile's methods are wrapped, to keep the file alive.
    const module = capi.PyImport_GetModule(keys.tempfile) orelse {
        if (capi.PyErr_Occurred() != null) return error.Raised;
        return null;
    };
    defer capi.drop(module);
    const kind = try capi.owned(capi.PyObject_GetAttr(module, keys._TemporaryFileWrapper));
    defer capi.drop(kind);
    if (@as(*Object, @ptrCast(@alignCast(filelike.type))) != kind) return null;
    return try capi.owned(capi.PyObject_GetAttr(filelike, keys.file));
}

/// Whether it reads from a descriptor of its own, and nothing that was written is still on its way.
fn is_real(file: *Object) capi.Error!bool {
    if (capi.is_exact(file, plain_type)) return call_boolean(file, keys.readable);
    const is_random = capi.is_exact(file, random_type);
    if (!is_random and !capi.is_exact(file, reader_type)) return false;
    const raw = try capi.owned(capi.PyObject_GetAttr(file, keys.raw));
    defer capi.drop(raw);
    if (!capi.is_exact(raw, plain_type)) return false;
    if (is_random) capi.drop(try call_method(file, keys.flush));
    return true;
}

fn call_method(object: *Object, name: *Object) capi.Error!*Object {
    const end: ?*Object = null;
    return capi.owned(capi.PyObject_CallMethodObjArgs(object, name, end));
}

fn call_boolean(object: *Object, name: *Object) capi.Error!bool {
    const result = try call_method(object, name);
    defer capi.drop(result);
    return capi.is_true(result);
}

fn call_integer(object: *Object, name: *Object) capi.Error!i64 {
    const result = try call_method(object, name);
    defer capi.drop(result);
    const number = capi.PyLong_AsLongLong(result);
    if (number == -1 and capi.PyErr_Occurred() != null) return error.Raised;
    return number;
}

// ---- The iterable ------------------------------------------------------------------------------

fn of(object: *Object) *FileWrapper {
    return @ptrCast(@alignCast(object));
}

/// The parameters' names are those of wsgiref.
const parameters = [_:null]?[*:0]const u8{ "filelike", "blksize" };

fn create(kind: *capi.Type, arguments: *Object, named: ?*Object) callconv(.c) ?*Object {
    var filelike: ?*Object = null;
    var block: ?*Object = null;
    const format = "O|O:file_wrapper";
    const names: [*:null]const ?[*:0]const u8 = &parameters;
    const parsed =
        capi.PyArg_ParseTupleAndKeywords(arguments, named, format, names, &filelike, &block);
    if (parsed == 0) return null;
    const self = capi.allocate(FileWrapper, kind) catch return null;
    self.filelike = capi.new(filelike.?);
    self.block = if (block) |given|
        capi.new(given)
    else
        capi.PyLong_FromLongLong(default_block_bytes);
    if (self.block != null) return &self.head;
    capi.drop(&self.head);
    return null;
}

fn traverse(object: *Object, visit: capi.Visit, argument: ?*anyopaque) callconv(.c) c_int {
    const self = of(object);
    const held = [_]?*Object{ @ptrCast(@alignCast(object.type)), self.filelike, self.block };
    for (held) |one| {
        const result = if (one) |found| visit(found, argument) else 0;
        if (result != 0) return result;
    }
    return 0;
}

/// Breaks a cycle. None is no file, but it can be asked for a method, and the rest of the cycle may
/// still do so.
fn clear(object: *Object) callconv(.c) c_int {
    const self = of(object);
    for ([_]*?*Object{ &self.filelike, &self.block }) |slot| {
        const before = slot.*;
        slot.* = capi.none();
        capi.drop_maybe(before);
    }
    return 0;
}

/// How deep the deallocation of this thread is in wrappers that hold wrappers, and those that wait
/// until it has come out: the C stack is not as deep as an application may nest them. CPython's own
/// containers do the same ("trashcan"), by functions that are not in the stable ABI.
threadlocal var depth: u32 = 0;
threadlocal var waiting: ?*FileWrapper = null;
const depth_max = 50;

fn dealloc(object: *Object) callconv(.c) void {
    capi.PyObject_GC_UnTrack(object);
    const self = of(object);
    if (self.weak_references != null) capi.PyObject_ClearWeakRefs(object);
    if (depth == depth_max) {
        self.next = waiting;
        waiting = self;
        return;
    }
    depth += 1;
    free(self);
    // Only the outermost takes from the list, so that what it frees can go as deep again.
    if (depth == 1) while (waiting) |one| {
        waiting = one.next;
        free(one);
    };
    depth -= 1;
}

fn free(self: *FileWrapper) void {
    capi.drop_maybe(self.filelike);
    capi.drop_maybe(self.block);
    capi.deallocate(&self.head);
}

fn iter(object: *Object) callconv(.c) ?*Object {
    return capi.new(object);
}

fn iternext(object: *Object) callconv(.c) ?*Object {
    const self = of(object);
    const end: ?*Object = null;
    const file = capi.new(self.filelike.?);
    defer capi.drop(file);
    const block = capi.new(self.block.?);
    defer capi.drop(block);
    const data = capi.PyObject_CallMethodObjArgs(file, keys.read, block, end) orelse return null;
    // A block that is not bytes goes on, for the server to refuse.
    if (capi.is_bytes(data) and capi.bytes_of(data).len == 0) {
        capi.drop(data);
        return null;
    }
    return data;
}

fn close(object: ?*Object, _: ?*Object) callconv(.c) ?*Object {
    const file = capi.new(of(object.?).filelike.?);
    defer capi.drop(file);
    const method = capi.attribute(file, keys.close) catch return null;
    const function = method orelse return capi.none();
    defer capi.drop(function);
    return capi.PyObject_CallNoArgs(function);
}

const methods = [_]capi.MethodDef{
    capi.plain_method("close", close, "Closes the file"),
    capi.not_pickled,
    .{},
};

const members = capi.weak_references_at(@offsetOf(FileWrapper, "weak_references"));

const slots = [_]capi.Slot{
    capi.slot(capi.tp_new, @ptrCast(&create)),
    capi.slot(capi.tp_dealloc, @ptrCast(&dealloc)),
    capi.slot(capi.tp_traverse, @ptrCast(&traverse)),
    capi.slot(capi.tp_clear, @ptrCast(&clear)),
    capi.slot(capi.tp_iter, @ptrCast(&iter)),
    capi.slot(capi.tp_iternext, @ptrCast(&iternext)),
    capi.slot(capi.tp_methods, @ptrCast(&methods)),
    capi.slot(capi.tp_members, @ptrCast(&members)),
    capi.slot(capi.tp_doc, "file_wrapper(filelike, blksize): iterates over blocks of a file"),
    capi.slot_end,
};

const spec: capi.Spec = .{
    .name = "serve_zig._core.FileWrapper",
    .basicsize = @sizeOf(FileWrapper),
    .flags = capi.type_collected | capi.type_immutable,
    .slots = &slots,
};

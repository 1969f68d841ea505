-- From a gRPC call of inference.GRPCInferenceService to a request that the ordinary routes understand. Runs before the
-- filter that takes the gRPC frame off; see grpc.py.
--
--   ModelInfer of digits       -> POST /v2/models/digits/infer, read by the decoder v2-grpc
--   ModelInfer of digits, 3    -> POST /v2/models/digits/versions/3/infer
--   the other methods          -> the virtual host of their own, which no client can name
--
-- MAX_TIMEOUT_MS, the platform's own timeout, is written in front of this by grpc.py.
-- All that is read of the message is its fields 1 (model_name) and 2 (model_version), both strings. As in every protobuf
-- parser fields may come in any order, and of several the last one counts; the worker checks that it reads the same name.
-- https://protobuf.dev/programming-guides/encoding
-- https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto

local byte = string.byte

local FRAME_BYTES = 5 -- a flag for compression and the message's length: the head of a gRPC frame
local WINDOW_BYTES = 512 -- bytes of the message that are copied at a time
local MAX_FIELDS = 4096 -- fields of one message; a message with more is refused, so that the work is bounded
local MAX_NAME_BYTES = 100

local TIMEOUT_UNITS_MS = { H = 3600000, M = 60000, S = 1000, m = 1, u = 0.001, n = 0.000001 }

local SERVER_METHODS = { ServerLive = true, ServerReady = true, ServerMetadata = true }
local MODEL_METHODS = { ModelReady = "ready", ModelMetadata = "metadata" }

-- What a request is refused by: caught in envoy_on_request, answered with its HTTP status.
local function refuse(status, text)
  error({ status = status, text = text }, 0)
end

local function truncated()
  refuse("400", "the message is not valid protobuf: a field ends behind the message")
end

-- A reader of the message's bytes: read(position) is the byte at that position, counted from 0 behind the frame's head.
local function reader(body, size)
  local window, first, last = "", 0, -1
  return function(position)
    if position < first or position > last then
      if position >= size then
        truncated()
      end
      local length = math.min(WINDOW_BYTES, size - position)
      window = body:getBytes(FRAME_BYTES + position, length)
      first, last = position, position + length - 1
    end
    return byte(window, position - first + 1)
  end
end

-- The varint at a position, and the position behind it. Above 2^53 a number is inexact, which only lengths could mind:
-- such a length ends behind every message.
local function varint(read, position)
  local value, factor = 0, 1
  for count = 1, 10 do
    local next_byte = read(position)
    position = position + 1
    value = value + (next_byte % 128) * factor
    if next_byte < 128 then
      return value, position
    end
    factor = factor * 128
  end
  refuse("400", "the message is not valid protobuf: a number has more than 10 bytes")
end

-- The text fields 1 and 2 of a message of `size` bytes; "" for one that is missing.
local function name_and_version(body, size)
  local read, position, fields = reader(body, size), 0, 0
  local found = { "", "" }
  while position < size do
    fields = fields + 1
    if fields > MAX_FIELDS then
      refuse("400", "the message has too many fields: at most " .. MAX_FIELDS)
    end
    local tag, length
    tag, position = varint(read, position)
    local number, wire_type = math.floor(tag / 8), tag % 8
    if number == 0 or tag >= 4294967296 then
      refuse("400", "the message is not valid protobuf: no such field number")
    end
    if wire_type == 0 then
      length, position = varint(read, position)
      length = 0
    elseif wire_type == 1 then
      length = 8
    elseif wire_type == 2 then
      length, position = varint(read, position)
    elseif wire_type == 5 then
      length = 4
    else
      refuse("400", "the message is not valid protobuf: no such wire type")
    end
    if length > size - position then
      truncated()
    end
    if wire_type == 2 and number <= 2 then
      if length > MAX_NAME_BYTES then
        refuse("404", "no such model: its name or version is longer than any")
      end
      found[number] = length > 0 and body:getBytes(FRAME_BYTES + position, length) or ""
    elseif number <= 2 then
      refuse("400", "the message is not valid protobuf: the model's name or version is not a string")
    end
    position = position + length
  end
  return found[1], found[2]
end

-- Bytes of the one message in the body. Raises unless the body is exactly one uncompressed gRPC frame.
local function message_size(headers, body)
  local encoding = headers:get("grpc-encoding")
  if encoding ~= nil and encoding ~= "identity" then
    refuse("501", "compressed messages are not supported; send grpc-encoding: identity")
  end
  local size = body and body:length() or 0
  if size < FRAME_BYTES then
    refuse("400", "the request has no complete gRPC frame")
  end
  local flag, a, b, c, d = byte(body:getBytes(0, FRAME_BYTES), 1, FRAME_BYTES)
  if flag ~= 0 then
    refuse("501", "compressed messages are not supported; send grpc-encoding: identity")
  end
  if ((a * 256 + b) * 256 + c) * 256 + d ~= size - FRAME_BYTES then
    refuse("400", "the request is not exactly one gRPC message")
  end
  return size - FRAME_BYTES
end

local function check(text, what)
  if not string.find(text, "^[A-Za-z0-9][A-Za-z0-9_.-]*$") then
    refuse("404", "no such " .. what .. ": it has characters that none has")
  end
end

-- The router's timeout, of a client's deadline: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
-- Not Envoy's own option for that (max_stream_duration): it takes the routes' timeouts away from REST, too.
local function set_timeout(headers)
  local deadline = headers:get("grpc-timeout")
  if deadline == nil then
    return
  end
  local amount, unit = string.match(deadline, "^(%d+)([HMSmun])$")
  if amount == nil or #amount > 8 then
    refuse("400", "grpc-timeout must be at most 8 digits and one of H, M, S, m, u, n")
  end
  local milliseconds = math.ceil(tonumber(amount) * TIMEOUT_UNITS_MS[unit])
  if milliseconds == 0 then
    refuse("504", "the deadline is over")
  end
  if milliseconds < MAX_TIMEOUT_MS then
    headers:replace("x-envoy-upstream-rq-timeout-ms", string.format("%d", milliseconds))
  end
end

local function route(handle)
  if handle:streamInfo():protocol() ~= "HTTP/2" then
    refuse("400", "gRPC needs HTTP/2, with prior knowledge or by ALPN")
  end
  local body = handle:body() -- waits; whatever was asked of the handle before is void after that
  local headers = handle:headers()
  local method = string.match(headers:get(":path"), "^/inference%.GRPCInferenceService/(%a+)")
  local size = message_size(headers, body)
  set_timeout(headers)
  headers:replace("x-modelway-grpc", method)
  if SERVER_METHODS[method] then
    headers:replace(":authority", "grpc.modelway")
    headers:replace(":path", "/" .. method)
    return
  end
  local model, version = name_and_version(body, size)
  if model == "" then
    refuse("400", "the request names no model")
  end
  check(model, "model")
  local path = "/v2/models/" .. model
  if version ~= "" then
    check(version, "version")
    path = path .. "/versions/" .. version
  end
  if method == "ModelInfer" then
    headers:replace("x-modelway-protocol", "v2-grpc")
    headers:replace(":path", path .. "/infer")
  else
    headers:replace(":authority", "grpc.modelway")
    headers:replace(":path", path .. "/" .. MODEL_METHODS[method])
  end
end

function envoy_on_request(handle)
  local done, problem = pcall(route, handle)
  if done then
    return
  end
  if type(problem) == "table" then
    handle:respond({ [":status"] = problem.status }, problem.text)
  else
    handle:logErr("gRPC request: " .. tostring(problem))
    handle:respond({ [":status"] = "500" }, "the gateway failed on this request")
  end
end

-- Answers of worker and router on their way to the filter that makes gRPC frames of them; see grpc.py.
--
--   200 with a message                            passes untouched
--   {"error": "..."} and a status from 400 on     noted, for the reply that the bridge makes of it
--   an error of Envoy's router                    noted likewise: the bridge would hide it
--   an answer of Envoy itself (metadata)          gets the message that its route holds as its body
--
-- GRPC_STATUS (HTTP status -> gRPC status) is written in front of this by grpc.py.
-- The bridge replaces whatever is not application/x-protobuf by a reply of its own; local replies are then formatted with
-- what was noted here (`noted` in grpc.py).

local MESSAGE = "application/x-protobuf"
local MAX_ERROR_BYTES = 8192
local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

local function percent_decoded(text)
  return (string.gsub(text, "%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

-- The text of {"error": "text"}, as our runtime writes it, or of TorchServe's {"message": "text"}; else nil.
local function error_text(body)
  local start = select(2, string.find(body, '"error"%s*:%s*"')) or select(2, string.find(body, '"message"%s*:%s*"'))
  if start == nil then
    return nil
  end
  local parts, position = {}, start + 1
  while true do
    local stop = string.find(body, '["\\]', position)
    if stop == nil then
      return nil
    end
    parts[#parts + 1] = string.sub(body, position, stop - 1)
    if string.byte(body, stop) == 34 then
      return table.concat(parts)
    end
    local escaped = string.sub(body, stop + 1, stop + 1)
    if escaped == "u" then
      parts[#parts + 1] = "?" -- control characters and halves of surrogates: nothing that an error needs
      position = stop + 6
    else
      parts[#parts + 1] = ESCAPES[escaped] or escaped
      position = stop + 2
    end
  end
end

local function note(handle, headers, status, text)
  local noted = handle:streamInfo():dynamicMetadata()
  noted:set("modelway.grpc", "status", status)
  noted:set("modelway.grpc", "message", text)
  for _, name in ipairs({ "x-modelway-version", "x-modelway-release", "retry-after" }) do
    local value = headers:get(name)
    if value ~= nil then
      noted:set("modelway.grpc", name, value)
    end
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local grpc_status = headers:get("grpc-status")
  if grpc_status ~= nil then -- of Envoy itself
    local answer = handle:metadata():get("answer")
    -- UNKNOWN is what Envoy makes of a reply of 200; a refusal on the way to the answer has another status.
    if answer == nil or grpc_status ~= "2" then
      note(handle, headers, grpc_status, percent_decoded(headers:get("grpc-message") or ""))
      return
    end
    headers:remove("grpc-status")
    headers:remove("grpc-message")
    headers:replace("content-type", MESSAGE)
    local message = string.gsub(answer, "%x%x", function(hex)
      return string.char(tonumber(hex, 16))
    end)
    handle:body(true):setBytes(message)
  elseif headers:get(":status") == "200" and headers:get("content-type") ~= MESSAGE then
    note(handle, headers, "13", "the worker answered with something that is no message")
  elseif headers:get(":status") ~= "200" then
    local status, body = headers:get(":status"), handle:body()
    local text = body and error_text(body:getBytes(0, math.min(body:length(), MAX_ERROR_BYTES)))
    headers = handle:headers() -- those of before are void after waiting for the body
    note(handle, headers, GRPC_STATUS[status] or "2", text or "the worker answered " .. status)
    headers:replace("content-type", "application/json") -- whatever it was: the bridge must not take it for a message
  end
end

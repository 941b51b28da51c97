// Records of the REST API, as far as the page reads them.

export interface Envelope {
  type: "sync" | "async" | "error";
  metadata: unknown;
  error: string;
}

export type Config = Record<string, string>;
export type Devices = Record<string, Config>;

export interface Operation {
  id: string;
  class: "task" | "websocket" | "token";
  description: string;
  created_at: string;
  status: string;
  status_code: number;
  resources: Record<string, string[]> | null;
  metadata: Record<string, unknown> | null;
  may_cancel: boolean;
  err: string;
}

export interface Server {
  auth: "trusted" | "untrusted";
  config: Config;
  environment: {
    addresses: string[];
    certificate_fingerprint: string;
    kernel: string;
    kernel_version: string;
    os_name: string;
    os_version: string;
    server_name: string;
    server_version: string;
    storage: string;
    driver_version: string;
  };
}

export interface Address {
  family: string;
  address: string;
  netmask: string;
  scope: string;
}

export interface Nic {
  addresses: Address[];
  counters: { bytes_received: number; bytes_sent: number };
  type: string;
  hwaddr: string;
  state: string;
}

export interface State {
  status: string;
  cpu: { usage: number };
  disk: Record<string, { usage: number }> | null;
  memory: { usage: number; swap_usage: number };
  network: Record<string, Nic> | null;
  processes: number;
  pid: number;
}

export interface Instance {
  name: string;
  project: string;
  status: string;
  type: string;
  description: string;
  architecture: string;
  created_at: string;
  ephemeral: boolean;
  stateful: boolean;
  location: string;
  profiles: string[];
  config: Config;
  devices: Devices;
  expanded_config: Config;
  expanded_devices: Devices;
  state: State | null;
  snapshots: Snapshot[] | null;
}

export interface Snapshot {
  name: string;
  created_at: string;
  expires_at: string;
  stateful: boolean;
  size: number;
}

export interface Image {
  fingerprint: string;
  aliases: { name: string; description: string }[];
  properties: Record<string, string>;
  architecture: string;
  type: string;
  size: number;
  public: boolean;
  cached: boolean;
  uploaded_at: string;
}

export interface Profile {
  name: string;
  description: string;
  config: Config;
  devices: Devices;
  used_by: string[] | null;
}

export interface Network {
  name: string;
  description: string;
  type: string;
  managed: boolean;
  config: Config;
  used_by: string[] | null;
  status: string;
}

export interface Lease {
  hostname: string;
  hwaddr: string;
  address: string;
  type: string;
}

export interface Pool {
  name: string;
  description: string;
  driver: string;
  config: Config;
  used_by: string[] | null;
  status: string;
}

export interface Volume {
  name: string;
  type: string;
  content_type: string;
  description: string;
  config: Config;
  used_by: string[] | null;
  project: string;
}

export interface VolumeSnapshot {
  name: string;
  created_at: string;
}

export interface Amounts {
  space: { used: number; total: number };
}

export interface Project {
  name: string;
  description: string;
  config: Config;
  used_by: string[] | null;
}

export interface Warning {
  uuid: string;
  status: string;
  severity: string;
  type: string;
  count: number;
  last_message: string;
  last_seen_at: string;
  project: string;
  entity_url: string;
}

export interface Certificate {
  name: string;
  type: string;
  fingerprint: string;
  restricted: boolean;
  projects: string[];
}

export interface Lifecycle {
  action: string;
  source: string;
}

export type ApiEvent =
  | { type: "lifecycle"; project?: string; metadata: Lifecycle }
  | { type: "operation"; project?: string; metadata: Operation };

// A key of the configuration, as `GET /1.0/metadata/configuration` describes it.
export interface KeyHelp {
  shortdesc?: string;
  longdesc?: string;
  type?: string;
  defaultdesc?: string;
}

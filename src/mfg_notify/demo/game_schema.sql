-- The game's tables for the demo and the tests: the columns, constraints and indexes that the bot's database has around
-- manufacturing. Names are unqualified, so the caller's search_path selects the schema. Idempotent.

CREATE TABLE IF NOT EXISTS players (
    id           serial PRIMARY KEY,
    agent_symbol varchar(64) NOT NULL,
    token        text NOT NULL,
    faction      varchar(32) NOT NULL DEFAULT 'COSMIC',
    credits      bigint NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS players_agent_symbol ON players (agent_symbol);

-- From its entry into a universe to the reset that ends it. A reset leaves the player's other rows as they are.
CREATE TABLE IF NOT EXISTS eras (
    id        serial PRIMARY KEY,
    player_id integer NOT NULL REFERENCES players (id) ON UPDATE CASCADE ON DELETE CASCADE,
    opened_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz
);
CREATE INDEX IF NOT EXISTS eras_by_player ON eras (player_id);

-- One run for one product. The three sums stay 0 until the pipeline ends.
CREATE TABLE IF NOT EXISTS manufacturing_pipelines (
    id                varchar(64) PRIMARY KEY,
    sequence_number   integer,
    player_id         integer NOT NULL REFERENCES players (id) ON UPDATE CASCADE ON DELETE CASCADE,
    pipeline_type     varchar(20) DEFAULT 'FABRICATION',
    product_good      varchar(64) NOT NULL,
    sell_market       varchar(64) NOT NULL,
    expected_price    integer NOT NULL,
    status            varchar(32) NOT NULL DEFAULT 'PLANNING',
    total_cost        integer DEFAULT 0,
    total_revenue     integer DEFAULT 0,
    net_profit        integer DEFAULT 0,
    error_message     text,
    construction_site varchar(64),
    materials         jsonb DEFAULT '[]',
    created_at        timestamptz NOT NULL DEFAULT now(),
    started_at        timestamptz,
    completed_at      timestamptz,
    CONSTRAINT manufacturing_pipelines_status
        CHECK (status IN ('PLANNING', 'EXECUTING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    CONSTRAINT manufacturing_pipelines_type
        CHECK (pipeline_type IN ('FABRICATION', 'COLLECTION', 'CONSTRUCTION'))
);
CREATE INDEX IF NOT EXISTS manufacturing_pipelines_by_status ON manufacturing_pipelines (status);
CREATE INDEX IF NOT EXISTS manufacturing_pipelines_by_player ON manufacturing_pipelines (player_id);
CREATE INDEX IF NOT EXISTS manufacturing_pipelines_by_product ON manufacturing_pipelines (player_id, product_good);

-- One atomic job of a ship. Only old rows have the last four task types.
CREATE TABLE IF NOT EXISTS manufacturing_tasks (
    id                      varchar(64) PRIMARY KEY,
    pipeline_id             varchar(64) REFERENCES manufacturing_pipelines (id) ON DELETE CASCADE,
    player_id               integer NOT NULL REFERENCES players (id) ON UPDATE CASCADE ON DELETE CASCADE,
    task_type               varchar(32) NOT NULL,
    status                  varchar(32) NOT NULL DEFAULT 'PENDING',
    good                    varchar(64) NOT NULL,
    quantity                integer DEFAULT 0,
    actual_quantity         integer DEFAULT 0,
    source_market           varchar(64),
    target_market           varchar(64),
    factory_symbol          varchar(64),
    priority                integer DEFAULT 0,
    assigned_ship           varchar(64),
    retry_count             integer DEFAULT 0,
    max_retries             integer DEFAULT 3,
    total_cost              integer DEFAULT 0,
    total_revenue           integer DEFAULT 0,
    error_message           text,
    collect_phase_completed boolean DEFAULT false,
    acquire_phase_completed boolean DEFAULT false,
    phase_completed_at      timestamptz,
    created_at              timestamptz NOT NULL DEFAULT now(),
    ready_at                timestamptz,
    started_at              timestamptz,
    completed_at            timestamptz,
    CONSTRAINT manufacturing_tasks_status
        CHECK (status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING', 'COMPLETED', 'FAILED')),
    CONSTRAINT manufacturing_tasks_type
        CHECK (task_type IN ('ACQUIRE_DELIVER', 'COLLECT_SELL', 'LIQUIDATE', 'STORAGE_ACQUIRE_DELIVER',
                             'DELIVER_TO_CONSTRUCTION', 'ACQUIRE', 'DELIVER', 'COLLECT', 'SELL'))
);
CREATE INDEX IF NOT EXISTS manufacturing_tasks_by_pipeline ON manufacturing_tasks (pipeline_id);
CREATE INDEX IF NOT EXISTS manufacturing_tasks_by_status ON manufacturing_tasks (status);
CREATE INDEX IF NOT EXISTS manufacturing_tasks_by_ship ON manufacturing_tasks (assigned_ship);
CREATE INDEX IF NOT EXISTS manufacturing_tasks_by_player ON manufacturing_tasks (player_id, status);
CREATE INDEX IF NOT EXISTS manufacturing_tasks_to_assign
    ON manufacturing_tasks (status, priority DESC) WHERE status = 'READY';

CREATE TABLE IF NOT EXISTS manufacturing_task_dependencies (
    task_id       varchar(64) NOT NULL REFERENCES manufacturing_tasks (id) ON DELETE CASCADE,
    depends_on_id varchar(64) NOT NULL REFERENCES manufacturing_tasks (id) ON DELETE CASCADE,
    PRIMARY KEY (task_id, depends_on_id),
    CONSTRAINT manufacturing_task_dependencies_not_itself CHECK (task_id <> depends_on_id)
);
CREATE INDEX IF NOT EXISTS manufacturing_task_dependencies_back
    ON manufacturing_task_dependencies (depends_on_id);

-- A factory as one pipeline sees it, so several rows may describe the same factory at once.
CREATE TABLE IF NOT EXISTS manufacturing_factory_states (
    id                   serial PRIMARY KEY,
    factory_symbol       varchar(64) NOT NULL,
    output_good          varchar(64) NOT NULL,
    player_id            integer NOT NULL REFERENCES players (id) ON UPDATE CASCADE ON DELETE CASCADE,
    pipeline_id          varchar(64) REFERENCES manufacturing_pipelines (id) ON DELETE CASCADE,
    required_inputs      jsonb NOT NULL,
    delivered_inputs     jsonb DEFAULT '{}',
    all_inputs_delivered boolean DEFAULT false,
    current_supply       varchar(32),
    previous_supply      varchar(32),
    ready_for_collection boolean DEFAULT false,
    created_at           timestamptz NOT NULL DEFAULT now(),
    inputs_completed_at  timestamptz,
    ready_at             timestamptz,
    CONSTRAINT manufacturing_factory_states_once UNIQUE (factory_symbol, output_good, pipeline_id)
);
CREATE INDEX IF NOT EXISTS manufacturing_factory_states_by_pipeline ON manufacturing_factory_states (pipeline_id);
CREATE INDEX IF NOT EXISTS manufacturing_factory_states_by_player ON manufacturing_factory_states (player_id);
CREATE INDEX IF NOT EXISTS manufacturing_factory_states_waiting
    ON manufacturing_factory_states (factory_symbol, output_good) WHERE ready_for_collection = false;

CREATE TABLE IF NOT EXISTS ships (
    ship_symbol       varchar(64) NOT NULL,
    player_id         integer NOT NULL REFERENCES players (id) ON UPDATE CASCADE ON DELETE CASCADE,
    assignment_status varchar(32) NOT NULL DEFAULT 'idle',
    container_id      varchar(64),
    role              varchar(32) NOT NULL DEFAULT 'HAULER',
    dedicated_fleet   varchar(64),
    cargo_capacity    integer NOT NULL DEFAULT 0,
    PRIMARY KEY (ship_symbol, player_id),
    CONSTRAINT ships_assignment_status CHECK (assignment_status IN ('idle', 'active'))
);
CREATE INDEX IF NOT EXISTS ships_by_player ON ships (player_id, assignment_status);

-- A cache: a scan deletes all rows of a waypoint and inserts them again.
CREATE TABLE IF NOT EXISTS market_data (
    player_id       integer NOT NULL REFERENCES players (id) ON UPDATE CASCADE ON DELETE CASCADE,
    waypoint_symbol varchar(64) NOT NULL,
    good_symbol     varchar(64) NOT NULL,
    supply          varchar(32),
    activity        varchar(32),
    purchase_price  integer NOT NULL DEFAULT 0,
    sell_price      integer NOT NULL DEFAULT 0,
    trade_volume    integer NOT NULL DEFAULT 0,
    last_updated    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (player_id, waypoint_symbol, good_symbol),
    CONSTRAINT market_data_supply CHECK (supply IN ('SCARCE', 'LIMITED', 'MODERATE', 'HIGH', 'ABUNDANT')),
    CONSTRAINT market_data_activity CHECK (activity IN ('WEAK', 'GROWING', 'STRONG', 'RESTRICTED'))
);
CREATE INDEX IF NOT EXISTS market_data_by_good ON market_data (good_symbol);
